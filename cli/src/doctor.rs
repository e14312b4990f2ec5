//! `millrace doctor`: what on this machine makes a node fast, what does not, and what to change.
//!
//! Owns only the form of the report; the node does the looking.

use millrace_node::doctor::{self, Finding, State};
use serde_json::json;

use crate::failure::Failure;
use crate::output;

/// Report which fast paths this machine offers, which not and why, and what to change
///
/// It only looks: it changes nothing and needs no privileges. Ends with 1 if a node would not start.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace doctor
  millrace doctor --json | jq '.[] | select(.state != \"on\")'")]
pub(crate) struct DoctorArgs {
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

fn word(state: State) -> &'static str {
    match state {
        State::On => "on",
        State::Off => "off",
        State::Missing => "missing",
    }
}

fn table(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { name, state, found, advice } in findings {
        text.push_str(&format!("{:<7}  {name:<width$}  {found}\n", word(*state)));
        if let Some(advice) = advice {
            text.push_str(&format!("{:<7}  {:<width$}  -> {advice}\n", "", ""));
        }
    }
    text
}

pub(crate) fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let findings = doctor::examine();
    if args.json {
        let report: Vec<_> = findings
            .iter()
            .map(|Finding { name, state, found, advice }| {
                json!({ "name": name, "state": word(*state), "found": found, "advice": advice })
            })
            .collect();
        output::print_json(&report)?;
    } else {
        output::print(&table(&findings))?;
    }
    let is_missing = findings.iter().any(|finding| finding.state == State::Missing);
    if is_missing { Err(Failure::Reported) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_stands_below_what_it_is_for() {
        let finding = |name, state, advice: Option<&str>| Finding {
            name,
            state,
            found: "found".to_owned(),
            advice: advice.map(str::to_owned),
        };
        let findings = [
            finding("a", State::On, None),
            finding("long", State::Off, Some("do it")),
            finding("b", State::Missing, Some("must")),
        ];
        assert_eq!(
            table(&findings),
            "on       a     found\n\
             off      long  found\n               -> do it\n\
             missing  b     found\n               -> must\n"
        );
    }
}
