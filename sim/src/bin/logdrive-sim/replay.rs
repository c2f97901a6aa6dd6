//! One run again, and the smallest run that still shows what it showed.

use std::path::Path;
use std::process::ExitCode;

use logdrive_raft::Micros;
use logdrive_raft::mutant::Mutant;
use logdrive_sim::cluster::{Cluster, Source};
use logdrive_sim::draw;
use logdrive_sim::kv::KvModel;
use logdrive_sim::script::{Played, Script};
use logdrive_sim::shrink::Shrinker;

use crate::say::say;
use crate::story::{print_failure, replay_of};
use crate::{EXIT_ASSERTION, EXIT_INTERNAL, EXIT_USAGE, EXIT_VIOLATION, ReplayArgs, ShrinkArgs};

pub(crate) fn replay(args: &ReplayArgs) -> ExitCode {
    let mutant = match mutant_of(args.mutant.as_deref()) {
        Ok(mutant) => mutant,
        Err(code) => return code,
    };
    std::panic::set_hook(Box::new(|_| {}));
    let mut tell = |at: Micros, what: &str| {
        if args.trace {
            say!("{:>10} {what}", at.0);
        }
    };
    if let Some(path) = &args.script {
        return replay_script(path, args, mutant, &mut tell);
    }
    let seed = args.seed.unwrap_or_default();
    let (plan, steps) = if args.canary {
        draw::canary_of(seed)
    } else {
        draw::run_of(seed, args.beyond_limit)
    };
    let mut model = KvModel::default();
    let cluster = Cluster::new(&plan, steps, &Source::Drawn(seed), &mut model);
    let cluster = cluster.with_mutant(mutant);
    let until = args.until;
    let ended = if args.trace {
        cluster.traced(&mut tell).run(until)
    } else {
        cluster.run(until)
    };
    let mut replay = replay_of(seed, args.beyond_limit);
    if args.canary {
        replay += " --canary";
    }
    replay += &planted(mutant);
    print_failure(&format!("seed {seed}"), &plan, &ended, &replay);
    let summary = &ended.summary;
    say!(
        "seed {seed} {} events {} crashes {} elections {} acked {} hash {:016x}",
        if ended.failed.is_some() {
            "failed"
        } else {
            "ok"
        },
        summary.events,
        summary.crashes,
        summary.elections,
        summary.acked,
        summary.hash
    );
    if ended.failed.is_some() {
        ExitCode::from(EXIT_VIOLATION)
    } else {
        ExitCode::SUCCESS
    }
}

fn replay_script(
    path: &Path,
    args: &ReplayArgs,
    mutant: Option<Mutant>,
    tell: &mut dyn FnMut(Micros, &str),
) -> ExitCode {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("error: {}: {error}", path.display());
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let script = match Script::parse(&text) {
        Ok(script) => script,
        Err(error) => {
            let why = std::error::Error::source(&error).map(ToString::to_string);
            eprintln!(
                "error: {}: {error}: {}",
                path.display(),
                why.unwrap_or_default()
            );
            return ExitCode::from(EXIT_USAGE);
        }
    };
    say!("{}: {}", path.display(), script.cause);
    if script.reaches.is_empty() {
        eprintln!(
            "error: {}: `reaches` names nothing that the run has to reach, so it would prove nothing",
            path.display()
        );
        return ExitCode::from(EXIT_ASSERTION);
    }
    let until = args.until;
    let Played { ended, missed } = script.play(&mut KvModel::default(), mutant, until, tell);
    let planted = planted(mutant);
    let again = format!(
        "logdrive-sim replay --script {}{planted} --trace",
        path.display()
    );
    print_failure("the script", &script.plan, &ended, &again);
    if ended.failed.is_some() {
        return ExitCode::from(EXIT_VIOLATION);
    }
    match missed.filter(|_| until.is_none()) {
        Some(missed) => {
            say!("the script no longer reaches: {missed}");
            ExitCode::from(EXIT_ASSERTION)
        }
        None => {
            say!(
                "ok events {} hash {:016x}",
                ended.summary.events,
                ended.summary.hash
            );
            ExitCode::SUCCESS
        }
    }
}

pub(crate) fn shrink(args: &ShrinkArgs) -> ExitCode {
    let mutant = match mutant_of(args.mutant.as_deref()) {
        Ok(mutant) => mutant,
        Err(code) => return code,
    };
    std::panic::set_hook(Box::new(|_| {}));
    let (plan, steps) = draw::run_of(args.seed, args.beyond_limit);
    let mut shrinker = Shrinker::new(KvModel::default, mutant, args.runs);
    let Some(failing) = shrinker.record(args.seed, &plan, steps) else {
        say!("seed {} does not fail", args.seed);
        return ExitCode::from(EXIT_ASSERTION);
    };
    say!("{}", failing.failed);
    say!(
        "{} steps, {} decisions",
        failing.steps.len(),
        failing.choices.len()
    );
    let small = shrinker.shrink(failing);
    say!("{}", small.failed);
    say!(
        "{} steps, {} decisions",
        small.steps.len(),
        small.choices.len()
    );
    let script = Script {
        cause: small.failed.violation.text.clone(),
        broke: small.failed.violation.rule.to_string(),
        mutant: mutant.map(|mutant| mutant.name().to_owned()),
        reaches: Vec::new(),
        steps: small.steps,
        choices: small.choices,
        plan: small.plan,
    };
    match std::fs::write(&args.out, script.to_text()) {
        Ok(()) => {
            say!(
                "write into `reaches` what it has to reach, in words of its story, and into `cause` why it failed"
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {}: {error}", args.out.display());
            ExitCode::from(EXIT_INTERNAL)
        }
    }
}

/// The option that plants a bug again.
fn planted(mutant: Option<Mutant>) -> String {
    mutant.map_or_else(String::new, |mutant| format!(" --mutant {}", mutant.name()))
}

fn mutant_of(name: Option<&str>) -> Result<Option<Mutant>, ExitCode> {
    let Some(name) = name else {
        return Ok(None);
    };
    match name.parse() {
        Ok(mutant) => Ok(Some(mutant)),
        Err(error) => {
            eprintln!("error: {error}: only a build with --cfg mutants holds planted bugs");
            Err(ExitCode::from(EXIT_USAGE))
        }
    }
}
