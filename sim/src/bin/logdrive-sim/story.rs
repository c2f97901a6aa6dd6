//! A failing run in words: what it was, how it ended, and how to see it again.

use logdrive_sim::cluster::Ended;
use logdrive_sim::plan::Plan;

use crate::VERSION;
use crate::say::say;

/// Prints how a failing run ended, and how to see it again.
pub(crate) fn print_failure(what: &str, plan: &Plan, ended: &Ended, replay: &str) {
    let Some(failed) = &ended.failed else {
        return;
    };
    say!("\n{what}: {failed}");
    say!("options: {plan:?}");
    for node in &ended.nodes {
        say!("  {node}");
    }
    say!("build: logdrive-sim {VERSION}");
    say!("replay: {replay}");
}

/// The command that replays a seed.
pub(crate) fn replay_of(seed: u64, beyond_limit: bool) -> String {
    let beyond = if beyond_limit { " --beyond-limit" } else { "" };
    format!("logdrive-sim replay --seed {seed}{beyond} --trace")
}
