//! A failing run in words: what it was, how it ended, and how to see it again.

use logdrive_sim::cluster::Ended;
use logdrive_sim::plan::Plan;

use crate::VERSION;

/// Prints how a failing run ended, and how to see it again.
pub(crate) fn print_failure(what: &str, plan: &Plan, ended: &Ended, replay: &str) {
    let Some(failed) = &ended.failed else {
        return;
    };
    println!("\n{what}: {failed}");
    println!("options: {plan:?}");
    for node in &ended.nodes {
        println!("  {node}");
    }
    println!("build: logdrive-sim {VERSION}");
    println!("replay: {replay}");
}

/// The command that replays a seed.
pub(crate) fn replay_of(seed: u64, beyond_limit: bool) -> String {
    let beyond = if beyond_limit { " --beyond-limit" } else { "" };
    format!("logdrive-sim replay --seed {seed}{beyond} --trace")
}
