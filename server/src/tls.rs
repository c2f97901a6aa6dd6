//! `logdrive tls`: an authority for a cluster, and the certificates it issues.

use std::path::Path;

use logdrive_net::Role;
use logdrive_net::ca::{Authority, CaError, IssueRequest};
use logdrive_raft::NodeId;

use crate::args::{Issue, RoleArg, Tls};
use crate::exit::{Exit, Failure};
use crate::out::Out;

/// Runs the command.
pub(crate) fn run(command: &Tls, out: &mut Out<'_>) -> Result<Exit, Failure> {
    match command {
        Tls::Init { dir, cluster } => init(dir, cluster, out),
        Tls::Issue(issue) => issue_one(issue, out),
    }
}

fn init(dir: &Path, cluster: &str, out: &mut Out<'_>) -> Result<Exit, Failure> {
    let name = cluster
        .parse()
        .map_err(|error| Failure::of(Exit::Usage, &error))?;
    Authority::init(dir, name).map_err(|error| failure(&error))?;
    let at = dir.display();
    writeln!(out, "made the authority of cluster {cluster} in {at}")?;
    writeln!(
        out,
        "keep {at}/ca.key to yourself: whoever has it can be any node of the cluster"
    )?;
    writeln!(
        out,
        "next: logdrive tls issue --dir {at} --role peer --node 1"
    )?;
    Ok(Exit::Pass)
}

fn issue_one(issue: &Issue, out: &mut Out<'_>) -> Result<Exit, Failure> {
    let authority = Authority::load(&issue.dir).map_err(|error| failure(&error))?;
    let role = match issue.role {
        RoleArg::Peer => Role::Peer,
        RoleArg::Client => Role::Client,
        RoleArg::Admin => Role::Admin,
    };
    let mut request = IssueRequest::new(role, NodeId(issue.node), issue.days);
    request.sans.clone_from(&issue.sans);
    let into = issue.out.as_deref().unwrap_or(&issue.dir);
    let path = authority
        .issue_into(into, &request)
        .map_err(|error| failure(&error))?;
    let (cluster, node, days) = (authority.cluster(), issue.node, issue.days);
    writeln!(
        out,
        "issued logdrive://{cluster}/{role}/{node} for {days} days: {}",
        path.display()
    )?;
    Ok(Exit::Pass)
}

/// What was asked for cannot be done here; only a certificate that cannot be made is nobody's fault.
fn failure(error: &CaError) -> Failure {
    let exit = match error {
        CaError::Make(_) => Exit::Internal,
        _ => Exit::Usage,
    };
    Failure::of(exit, error)
}
