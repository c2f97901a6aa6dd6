//! Seeds for a test: whole runs of a model, one after the other, until one breaks a promise.

use std::fmt;

use logdrive_raft::Micros;

use crate::cluster::{Cluster, Failed, Source, Summary};
use crate::draw;
use crate::model::Model;

/// Runs a model under these seeds, each with a model of its own, and says what they saw together.
///
/// A run takes place in the calling thread and under a virtual clock: a seed that fails does so every time.
pub fn run_seeds<M: Model>(
    seeds: impl IntoIterator<Item = u64>,
    mut model: impl FnMut() -> M,
) -> Result<Summary, FailedSeed> {
    let mut sum = Summary::default();
    for seed in seeds {
        add(&mut sum, &run(seed, model(), None)?);
    }
    Ok(sum)
}

/// Runs a model under one seed and tells everything that happens, and when.
pub fn tell_seed<M: Model>(
    seed: u64,
    model: M,
    mut tell: impl FnMut(Micros, &str),
) -> Result<Summary, FailedSeed> {
    run(seed, model, Some(&mut tell))
}

/// A seed under which a promise was broken.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "seed {seed}: {failed}\n\
     replay it with run_seeds([{seed}], ..), or hear its story with \
     tell_seed({seed}, model, |at, what| println!(\"{{}} {{what}}\", at.0))"
)]
pub struct FailedSeed {
    /// Which.
    pub seed: u64,
    /// Which promise, how and when.
    pub failed: Failed,
    /// How each node stood then.
    pub nodes: Vec<String>,
}

/// A test that ends with an error shows it in this form.
impl fmt::Debug for FailedSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        self.nodes.iter().try_for_each(|node| write!(f, "\n{node}"))
    }
}

type Tell<'a> = dyn FnMut(Micros, &str) + 'a;

fn run<M: Model>(
    seed: u64,
    mut model: M,
    tell: Option<&mut Tell<'_>>,
) -> Result<Summary, FailedSeed> {
    let (plan, steps) = draw::run_of(seed, false);
    let cluster = Cluster::new(&plan, steps, &Source::Drawn(seed), &mut model);
    let ended = match tell {
        Some(tell) => cluster.traced(tell).run(None),
        None => cluster.run(None),
    };
    let mut failed = ended.failed;
    if let Some(violation) = model.found() {
        // A machine that has seen something stops, and what follows from that is not the news. A node whose
        // disk was damaged may stop without anybody minding.
        let (at, event) = match &failed {
            Some(failed) => (failed.at, failed.event),
            None => {
                let end = Micros(plan.faulty_us).after(plan.healthy_us);
                (end, ended.summary.events)
            }
        };
        failed = Some(Failed {
            violation,
            at,
            event,
        });
    }
    match failed {
        None => Ok(ended.summary),
        Some(failed) => Err(FailedSeed {
            seed,
            failed,
            nodes: ended.nodes,
        }),
    }
}

fn add(sum: &mut Summary, one: &Summary) {
    sum.events += one.events;
    sum.crashes += one.crashes;
    sum.elections += one.elections;
    sum.acked += one.acked;
    sum.hash = sum.hash.rotate_left(1) ^ one.hash;
    sum.searched.explained += one.searched.explained;
    sum.searched.given_up += one.searched.given_up;
    sum.coverage.merge(&one.coverage);
}
