//! How a verb fails: what people read on stderr, and the exit code that scripts read.
//!
//! Owns the form of a message: `millrace: <what>: <cause>` in one line, then perhaps `hint: ...`. The
//! libraries end a message with what to do, after a semicolon; that part becomes the hint. If the reader
//! of stdout went away the program ends without a message. Where a verb was asked for JSON the message is one JSON
//! document on a line, with a code that scripts can compare.

use std::process::ExitCode;

use millrace_client::{Error, Status};
use serde_json::json;

/// Code of a failure that no node and no client of one has named.
const KIND_FAILED: &str = "Failed";
/// Code of a mistake on the command line or in a configuration.
const KIND_USAGE: &str = "Usage";

/// Exit code if the world is not as it has to be.
const FAILED: u8 = 1;
/// Exit code if a command line or a configuration is not understood; clap uses the same.
const USAGE: u8 = 2;

/// Why a verb did not do what was asked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// A failure with a message.
    Told {
        /// One line without `millrace: `.
        text: String,
        /// What to do about it.
        hint: Option<String>,
        /// 1 or 2.
        code: u8,
        /// The code of JSON: a status of the protocol, the name of an error of the client, `Failed` or `Usage`.
        kind: String,
    },
    /// The report on stdout says it already.
    Reported,
    /// The reader of stdout went away.
    BrokenPipe,
}

impl Failure {
    /// Returns a failure of the world, from a message that may end with `; <what to do>`.
    pub(crate) fn new(message: impl Into<String>) -> Failure {
        Failure::split(&message.into(), FAILED)
    }

    /// Returns a mistake on the command line, in the environment or in the configuration file.
    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure::split(&message.into(), USAGE)
    }

    /// Returns the error of the client at a path; the empty path is the root.
    pub(crate) fn at_path(path: &str, error: &Error) -> Failure {
        match error {
            Error::Status { .. } | Error::DeadlineExceeded => {
                Failure::new(format!("{}: {error}", shown(path))).with_kind(kind_of(error))
            }
            _ => Failure::from(error.clone()),
        }
    }

    /// Returns the error of a request about load jobs.
    pub(crate) fn of_job(error: Error) -> Failure {
        if error.status() == Some(Status::UnknownOp) {
            return Failure::new(
                "the node is of an earlier version, which has no load jobs; update it",
            );
        }
        Failure::from(error)
    }

    /// Returns the same failure with another hint.
    pub(crate) fn with_hint(self, advice: impl Into<String>) -> Failure {
        match self {
            Failure::Told { text, code, kind, .. } => {
                Failure::Told { text, hint: Some(advice.into()), code, kind }
            }
            other => other,
        }
    }

    /// Returns the same failure with the code of JSON.
    fn with_kind(self, kind: String) -> Failure {
        match self {
            Failure::Told { text, hint, code, .. } => Failure::Told { text, hint, code, kind },
            other => other,
        }
    }

    fn split(message: &str, code: u8) -> Failure {
        // Each failure has one line, and a message of several would hide that.
        let message = message.trim().replace('\n', ", ");
        let (text, hint) = match message.split_once("; ") {
            Some((text, hint)) => (text.to_owned(), Some(hint.to_owned())),
            None => (message, None),
        };
        let kind = if code == USAGE { KIND_USAGE } else { KIND_FAILED };
        Failure::Told { text, hint, code, kind: kind.to_owned() }
    }

    /// Returns the lines for stderr, if there is a message.
    pub(crate) fn lines(&self) -> Option<String> {
        match self {
            Failure::Told { text, hint, .. } => Some(match hint {
                Some(hint) => format!("millrace: {text}\nhint: {hint}"),
                None => format!("millrace: {text}"),
            }),
            Failure::Reported | Failure::BrokenPipe => None,
        }
    }

    /// Returns the document for stderr, if there is a message.
    pub(crate) fn document(&self) -> Option<String> {
        match self {
            Failure::Told { text, hint, code, kind } => {
                let error =
                    json!({ "code": kind, "message": text, "hint": hint, "exit_code": code });
                Some(json!({ "error": error }).to_string())
            }
            Failure::Reported | Failure::BrokenPipe => None,
        }
    }

    /// Returns the exit code.
    pub(crate) fn code(&self) -> ExitCode {
        match self {
            Failure::Told { code, .. } => ExitCode::from(*code),
            Failure::Reported => ExitCode::from(FAILED),
            Failure::BrokenPipe => ExitCode::SUCCESS,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::new(error.to_string()).with_kind(kind_of(&error))
    }
}

/// Returns the code of JSON of an error: the status that a node answered, else the name of the error.
fn kind_of(error: &Error) -> String {
    let name = match error {
        Error::Status { status, .. } => format!("{status:?}"),
        other => format!("{other:?}"),
    };
    name.split(|letter: char| !letter.is_ascii_alphanumeric()).next().unwrap_or_default().to_owned()
}

/// True if an error is about one file or directory, so that others can still be worked on.
pub(crate) fn is_about_path(error: &Error) -> bool {
    match error {
        Error::Stale { .. } => true,
        Error::Status { status, .. } => matches!(
            status,
            Status::NotFound
                | Status::WrongKind
                | Status::PermissionDenied
                | Status::InvalidArgument
                | Status::OutOfRange
                | Status::UnknownFile
                | Status::StaleVersion
                | Status::SourceError
        ),
        _ => false,
    }
}

/// Returns a path as people know it: the root has a name.
pub(crate) fn shown(path: &str) -> &str {
    if path.is_empty() { "/" } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_becomes_the_hint() {
        let check = |failure: Failure, expect: &str| {
            assert_eq!(failure.lines().as_deref(), Some(expect));
        };
        check(
            Failure::new("cannot connect to a:1: refused; check the address"),
            "millrace: cannot connect to a:1: refused\nhint: check the address",
        );
        check(Failure::new("plain\n"), "millrace: plain");
        check(Failure::new("two\nlines"), "millrace: two, lines");
        check(
            Failure::usage("flag --memory: `x` is not allowed; expected a size")
                .with_hint("try 1GiB"),
            "millrace: flag --memory: `x` is not allowed\nhint: try 1GiB",
        );
    }

    #[test]
    fn documents_have_a_code_that_is_the_status_or_the_error() {
        let code = |failure: Failure| {
            let document = failure.document().expect("a message");
            let value: serde_json::Value = serde_json::from_str(&document).expect("JSON");
            value["error"]["code"].as_str().expect("text").to_owned()
        };
        let status = |status| Error::Status { status, message: "m".to_owned() };
        assert_eq!(code(Failure::from(status(Status::NotFound))), "NotFound");
        assert_eq!(code(Failure::at_path("a", &status(Status::SourceError))), "SourceError");
        assert_eq!(code(Failure::from(Error::DeadlineExceeded)), "DeadlineExceeded");
        assert_eq!(code(Failure::from(Error::Stale { path: "a".into() })), "Stale");
        assert_eq!(code(Failure::from(Error::InvalidArgument("x".to_owned()))), "InvalidArgument");
        assert_eq!(code(Failure::new("x").with_hint("y")), "Failed");
        let expect = r#"{"error":{"code":"Usage","exit_code":2,"hint":"say it; again","message":"no \"x\""}}"#;
        assert_eq!(Failure::usage("no \"x\"; say it; again").document().as_deref(), Some(expect));
        assert_eq!(Failure::Reported.document(), None);
    }

    #[test]
    fn root_has_a_name_in_messages() {
        let error = Error::Status { status: Status::PermissionDenied, message: String::new() };
        let expect = Some("millrace: /: permission denied".to_owned());
        assert_eq!(Failure::at_path("", &error).lines(), expect);
        let late = Failure::at_path("a/b", &Error::DeadlineExceeded).lines();
        assert!(late.is_some_and(|line| line.starts_with("millrace: a/b: ")));
    }

    #[test]
    fn lost_node_ends_the_work_and_a_lost_file_does_not() {
        let status = |status| Error::Status { status, message: String::new() };
        assert!(is_about_path(&status(Status::NotFound)));
        assert!(is_about_path(&Error::Stale { path: "a".into() }));
        assert!(!is_about_path(&status(Status::ShuttingDown)));
        assert!(!is_about_path(&Error::DeadlineExceeded));
    }
}
