//! The way from the command line to a cluster.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use logdrive::GroupId;
use logdrive_net::client::{SnapshotError, snapshot, status};
use logdrive_net::{Client, ClientOptions, Code, ConnectError, Credentials, ProposeError};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::args::{Snapshot, Target};
use crate::exit::{Exit, Failure, chain};

/// Proposes to the cluster, and waits for the state machine's answer.
pub(crate) fn propose(target: &Target, payload: &[u8]) -> Result<Bytes, Failure> {
    let credentials = credentials(&target.tls)?;
    let payload = Bytes::copy_from_slice(payload);
    let proposed = async {
        let deadline = Instant::now() + target.timeout;
        let connecting = Client::connect(
            target.addresses.clone(),
            &credentials,
            ClientOptions::default(),
        );
        let client = timeout(target.timeout, connecting)
            .await
            .map_err(|_| nobody(&target.addresses.join(", "), target.timeout))?
            .map_err(|error| connect_failure(&error))?;
        let group = GroupId(target.group);
        let applied = client.propose_by(group, payload, deadline).await;
        applied.map_err(|error| propose_failure(&error))
    };
    Ok(block_on(proposed)??.output)
}

/// An address, and what the node there says of itself, as JSON.
pub(crate) type Asked = (String, Result<String, Failure>);

/// Asks nodes for their status.
pub(crate) struct Asker {
    credentials: Credentials,
    timeout: Duration,
}

impl Asker {
    pub(crate) fn new(tls: &Path, timeout: Duration) -> Result<Self, Failure> {
        let credentials = credentials(tls)?;
        Ok(Self {
            credentials,
            timeout,
        })
    }

    /// Asks all of them at once. The answers come in the order of the addresses.
    pub(crate) fn ask(&self, addresses: &[String]) -> Result<Vec<Asked>, Failure> {
        block_on(async {
            let mut asked = JoinSet::new();
            for (number, address) in addresses.iter().cloned().enumerate() {
                let (credentials, limit) = (self.credentials.clone(), self.timeout);
                asked.spawn(async move {
                    let answer = ask(&address, &credentials, limit).await;
                    (number, address, answer)
                });
            }
            let mut answers = asked.join_all().await;
            answers.sort_by_key(|(number, ..)| *number);
            let answer = |(_, address, answer)| (address, answer);
            answers.into_iter().map(answer).collect()
        })
    }
}

async fn ask(address: &str, credentials: &Credentials, limit: Duration) -> Result<String, Failure> {
    let answer = timeout(
        limit,
        status(address, credentials, ClientOptions::default()),
    )
    .await
    .map_err(|_| nobody(address, limit))?
    .map_err(|error| connect_failure(&error))?;
    String::from_utf8(answer.into())
        .map_err(|_| Failure::unreachable(format!("{address} sent a status that is no text")))
}

/// Has a node take a snapshot, and gives what it says of that, as JSON.
pub(crate) fn take_snapshot(command: &Snapshot) -> Result<String, Failure> {
    let (address, limit) = (command.address.as_str(), command.timeout);
    let credentials = Credentials::load_admin(&command.tls);
    let credentials = credentials.map_err(|error| Failure::of(Exit::Usage, &error))?;
    let (group, options) = (GroupId(command.group), ClientOptions::default());
    let asked = snapshot(address, group, &credentials, options, limit);
    let answer = block_on(asked)?.map_err(|error| match error {
        SnapshotError::Connect(error) => connect_failure(&error),
        SnapshotError::Refused { code } => {
            let identity = credentials.identity();
            snapshot_refused(address, command, code, &identity.to_string())
        }
        error => Failure::of(Exit::Internal, &error),
    })?;
    String::from_utf8(answer.into())
        .map_err(|_| Failure::unreachable(format!("{address} sent an answer that is no text")))
}

fn snapshot_refused(address: &str, command: &Snapshot, code: Code, identity: &str) -> Failure {
    let Snapshot { group, tls, .. } = command;
    match code {
        Code::FORBIDDEN => Failure::usage(format!(
            "{address} takes snapshots for admins only, and the certificate in {} is {identity}",
            tls.display()
        ))
        .advise("issue one with `logdrive tls issue --role admin`"),
        Code::UNKNOWN_GROUP => Failure::usage(format!("{address} does not hold group {group}")),
        Code::DEADLINE => {
            let limit = logdrive::units::spell_duration(command.timeout);
            let text = format!("{address} has no snapshot of group {group} after {limit}");
            Failure::new(Exit::AssertionFailed, text).advise(
                "it may still be at it: `logdrive status` says, and --timeout waits for longer",
            )
        }
        code => {
            let text = format!("{address} takes no snapshot of group {group} now: {code}");
            Failure::new(Exit::AssertionFailed, text)
        }
    }
}

fn credentials(dir: &Path) -> Result<Credentials, Failure> {
    Credentials::load_client(dir).map_err(|error| Failure::of(Exit::Usage, &error))
}

fn block_on<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime: Runtime = runtime
        .map_err(|error| Failure::new(Exit::Internal, format!("start a runtime: {error}")))?;
    Ok(runtime.block_on(future))
}

fn nobody(address: &str, limit: Duration) -> Failure {
    let limit = logdrive::units::spell_duration(limit);
    Failure::unreachable(format!(
        "{address} did not answer within {limit}: is the node running, and UDP open to it?"
    ))
}

fn connect_failure(error: &ConnectError) -> Failure {
    match error {
        // One address, whose error names it already.
        ConnectError::Unreachable { errors } if errors.len() == 1 => {
            let (address, error) = &errors[0];
            let text = chain(error);
            let named = text.contains(address.as_str());
            Failure::unreachable(if named {
                text
            } else {
                format!("{address}: {text}")
            })
        }
        ConnectError::Unreachable { .. } => Failure::of(Exit::Unreachable, error),
        ConnectError::NoAddress | ConnectError::Identity { .. } => Failure::of(Exit::Usage, error),
        _ => Failure::of(Exit::Internal, error),
    }
}

fn propose_failure(error: &ProposeError) -> Failure {
    let code = error.code();
    let exit = match code {
        Code::UNREACHABLE | Code::CONNECTION_LOST | Code::NOT_LEADER | Code::DEADLINE => {
            Exit::Unreachable
        }
        Code::TOO_LARGE | Code::UNKNOWN_GROUP | Code::FORBIDDEN => Exit::Usage,
        _ => Exit::AssertionFailed,
    };
    let failure = Failure::of(exit, error);
    if code == Code::DEADLINE && matches!(error, ProposeError::NeverAppended { .. }) {
        return failure.advise("nothing was written: sending it again cannot double it");
    }
    let known = logdrive::Code::ALL
        .iter()
        .find(|known| known.as_str() == code.name());
    match known {
        Some(known) => failure.advise(known.advice()),
        None => failure,
    }
}
