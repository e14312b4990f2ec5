//! One replica under load, killed at a random moment, started again, and checked, again and again.
//!
//! Each writer has requests of its own nodes under way, many at a time, and a connection does them in
//! order. So after a crash its nodes must show the first writes of all that it ever sent, up to some
//! point, and at least those that were acknowledged. Its session and ephemeral node must be there too.
//! Every start must succeed, also after a kill in the middle of one.

use std::time::{Duration, Instant};

use millrace_tests::coord::{Ensemble, Options};

mod writer;

use writer::Writer;

const WRITERS: usize = 4;
/// Time from the beginning of the load to the kill.
const LOAD_MS: std::ops::Range<u64> = 1..250;
/// One start in this many is killed as well.
const STARTS_KILLED: u64 = 8;
/// Time from the beginning of such a start to its kill.
const START_MS: std::ops::Range<u64> = 0..80;

/// Kills the replica `count` times.
///
/// # Errors
/// What was lost, or why a start failed. The data directory is kept then, and its place is printed.
pub(crate) fn run(count: u64, seed: u64) -> Result<(), String> {
    // Small limits, so that checkpoints and compactions are cut short too.
    let options = Options::new()
        .flag("checkpoint_interval_ms", 50)
        .flag("checkpoint_log_bytes", "256KiB")
        .flag("log_retain_bytes", "256KiB");
    let mut ensemble =
        Ensemble::prepare(1, false, &options).map_err(|error| format!("prepare: {error:#}"))?;
    let result = rounds(&mut ensemble, count, seed);
    if result.is_err() {
        println!("the data is kept in {}", ensemble.keep().display());
    }
    result
}

fn rounds(ensemble: &mut Ensemble, count: u64, seed: u64) -> Result<(), String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut starts_ms = Vec::new();
    let mut writers: Vec<Writer> =
        (0..WRITERS).map(|number| Writer::new(number, random.fork())).collect();
    let mut started_killed = 0_u64;
    for round in 0..=count {
        let replica = &mut ensemble.replicas[0];
        if round > 0 && round % STARTS_KILLED == 0 {
            replica.spawn();
            std::thread::sleep(Duration::from_millis(random.u64(START_MS)));
            replica.kill();
            started_killed += 1;
        }
        let began = Instant::now();
        replica.spawn();
        replica.wait_ready().map_err(|error| format!("start {round}: {error:#}"))?;
        starts_ms.push(began.elapsed().as_millis() as u64);
        let address = replica.address();
        for writer in &mut writers {
            writer.check(address).map_err(|why| format!("after kill {round}: {why}"))?;
        }
        if round == count {
            break;
        }
        let load = Duration::from_millis(random.u64(LOAD_MS));
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                writers.iter_mut().map(|writer| scope.spawn(|| writer.write())).collect();
            std::thread::sleep(load);
            ensemble.replicas[0].kill();
            threads.into_iter().try_for_each(|thread| {
                thread.join().map_err(|_| "a writer saw what may not be".to_owned())?
            })
        })
        .map_err(|why| format!("before kill {round}: {why}"))?;
        if round % 100 == 99 {
            println!("{} kills, {}", round + 1, describe(&writers, &mut starts_ms.clone()));
        }
    }
    println!("{count} kills under load and {started_killed} of a start");
    println!("{}", describe(&writers, &mut starts_ms));
    Ok(())
}

fn describe(writers: &[Writer], starts_ms: &mut [u64]) -> String {
    starts_ms.sort_unstable();
    let sum = |figure: fn(&Writer) -> u64| -> u64 { writers.iter().map(figure).sum() };
    format!(
        "{} writes acknowledged, {} of unknown fate, of which {} were done; starts: median {} ms, \
         longest {} ms",
        sum(|writer| writer.acknowledged),
        sum(|writer| writer.unknown),
        sum(|writer| writer.unknown_done),
        starts_ms[starts_ms.len() / 2],
        starts_ms[starts_ms.len() - 1],
    )
}
