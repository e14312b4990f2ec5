//! The simulation in CI: some hundreds of runs hold, a run repeats itself exactly, and rules that are
//! broken on purpose are noticed. Each test runs the command that people use, so that is tested, too.

use std::process::{Command, Output};

fn sim(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sim"));
    command.env("RUST_BACKTRACE", "0").args(arguments).output().expect("the simulation starts")
}

fn told(output: &Output) -> String {
    let [out, error] = [&output.stdout, &output.stderr].map(|it| String::from_utf8_lossy(it));
    format!("{out}{error}")
}

#[track_caller]
fn assert_holds(arguments: &[&str]) {
    let output = sim(arguments);
    assert!(output.status.success(), "{}", told(&output));
}

/// Checks that a broken rule is found within some seeds, by the property that it breaks, with a way to
/// repeat it.
#[track_caller]
fn assert_caught(canary: &str, properties: &[&str]) {
    assert_caught_in(&["--canary", canary, "--seeds", "100"], properties);
}

#[track_caller]
fn assert_caught_in(arguments: &[&str], properties: &[&str]) {
    let output = sim(arguments);
    let told = told(&output);
    assert_eq!(output.status.code(), Some(1), "{arguments:?} went unnoticed: {told}");
    let is_right = properties.iter().any(|property| told.contains(property));
    assert!(is_right, "{arguments:?} broke something else: {told}");
    assert!(told.contains("replay: cargo run"), "{told}");
}

#[test]
fn seeds_hold() {
    assert_holds(&["--seeds", "100"]);
}

#[test]
fn other_seeds_hold() {
    assert_holds(&["--start", "101", "--seeds", "100"]);
}

#[test]
fn ensembles_are_born_once() {
    assert_holds(&["--births", "--seeds", "60"]);
}

#[test]
fn a_snapshot_is_not_overwritten_by_what_was_merged_before() {
    assert_holds(&["--start", "51530", "--seeds", "1"]);
}

#[test]
fn a_run_repeats_itself() {
    for seed in ["3", "7"] {
        assert_holds(&["--twice", seed]);
    }
}

#[test]
fn acknowledging_before_durability_is_caught() {
    assert_caught(
        "early-durable",
        &[
            "acknowledged writes are never lost",
            "registers are linearizable",
            "replicas that applied the same index have the same state",
            "at most one leader a term",
            "each client's order",
            "nothing panics",
        ],
    );
}

#[test]
fn a_log_that_forgets_is_caught() {
    assert_caught(
        "forgetful-log",
        &[
            "acknowledged writes are never lost",
            "registers are linearizable",
            "replicas that applied the same index have the same state",
            "each client's order",
            "nothing panics",
        ],
    );
}

#[test]
fn a_clock_that_runs_fast_is_caught() {
    assert_caught("fast-clock", &["no session expires early"]);
}

#[test]
fn events_behind_the_data_are_caught() {
    assert_caught(
        "late-events",
        &["a watch event comes before the data it tells of", "each client's order"],
    );
}

#[test]
fn a_majority_of_new_disks_that_begins_is_caught() {
    assert_caught_in(
        &["--births", "--canary", "founds-by-majority", "--seeds", "100"],
        &["an ensemble is born once, and never beside data"],
    );
}
