//! How a statement fails: one line for people, and what to do about it.
//!
//! Owns the words for errors of DataFusion and of stores. The libraries below end a message with what to do,
//! after a semicolon; that part becomes the hint.

use std::fmt;

use datafusion::error::DataFusionError;
use object_store_0_13::Error as StoreError;

/// Most errors below each other that are looked at. Guessed: DataFusion nests a handful.
const DEPTH_MAX: usize = 32;

/// Why a statement did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    text: String,
    hint: Option<String>,
    is_broken_pipe: bool,
}

impl Failure {
    /// Returns a failure from a message that may end with `; <what to do>`.
    pub fn new(message: impl Into<String>) -> Failure {
        let message = message.into().trim().replace('\n', ", ");
        let (text, hint) = match message.split_once("; ") {
            Some((text, hint)) => (text.to_owned(), Some(hint.to_owned())),
            None => (message, None),
        };
        Failure { text, hint, is_broken_pipe: false }
    }

    /// Returns the same failure with another hint.
    pub fn with_hint(self, hint: impl Into<String>) -> Failure {
        Failure { hint: Some(hint.into()), ..self }
    }

    /// True if the reader of the output went away, which is not worth a message.
    pub fn is_broken_pipe(&self) -> bool {
        self.is_broken_pipe
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.text)?;
        match &self.hint {
            Some(hint) => write!(out, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        let is_broken_pipe = error.kind() == std::io::ErrorKind::BrokenPipe;
        Failure { is_broken_pipe, ..Failure::new(format!("cannot write the result: {error}")) }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        of_store(&error)
    }
}

impl From<DataFusionError> for Failure {
    fn from(error: DataFusionError) -> Failure {
        if let Some(error) = store_error(&error) {
            return of_store(error);
        }
        let root = error.find_root();
        let mut text = root.strip_backtrace();
        if let DataFusionError::Context(place, _) = &error {
            text = format!("{place}: {text}");
        }
        match root {
            DataFusionError::SQL(..) => Failure::new(format!("this is not SQL: {text}")),
            DataFusionError::Plan(_) if text.contains("not found") && text.contains("table '") => {
                Failure { hint: None, ..Failure::new(text) }
                    .with_hint("write the path of a file or directory of the nodes in quotes: FROM 'data/part.parquet'")
            }
            DataFusionError::ResourcesExhausted(_) => {
                Failure { hint: None, ..Failure::new(text) }.with_hint("give the query more with --memory")
            }
            _ => Failure::new(text),
        }
    }
}

/// Returns the error of a store that is the cause of another one.
fn store_error(error: &DataFusionError) -> Option<&StoreError> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    for _ in 0..DEPTH_MAX {
        let error = next?;
        if let Some(found) = error.downcast_ref::<StoreError>() {
            return Some(found);
        }
        // What an error of a file holds is not its source.
        let held = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = match held {
            Some(held) => Some(held),
            None => error.source(),
        };
    }
    None
}

fn of_store(error: &StoreError) -> Failure {
    match error {
        StoreError::NotFound { path, .. } => Failure::new(format!("'{path}' is not there"))
            .with_hint(
                "see what there is with `millrace fs ls`; a path begins at the root of the nodes",
            ),
        StoreError::PermissionDenied { path, source } => {
            Failure { hint: None, ..Failure::new(format!("'{path}': {source}")) }
                .with_hint("the operator of the nodes decides what clients may read and write")
        }
        StoreError::Precondition { path, .. } => {
            Failure::new(format!("'{path}' has changed while the query read it"))
                .with_hint("run the query again; it reads one version of each file, or fails")
        }
        StoreError::Generic { source, .. } => Failure::new(source.to_string()),
        error => Failure::new(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_becomes_the_hint() {
        let failure = Failure::new("cannot connect to a:1: refused; check the address");
        assert_eq!(failure.to_string(), "cannot connect to a:1: refused\nhint: check the address");
        assert_eq!(Failure::new("two\nlines\n").to_string(), "two, lines");
    }

    #[test]
    fn an_error_of_a_store_is_found_below_others() {
        let store = StoreError::Precondition { path: "a".to_owned(), source: "changed".into() };
        let error = DataFusionError::Context(
            "scan".to_owned(),
            Box::new(DataFusionError::External(Box::new(store))),
        );
        let text = Failure::from(error).to_string();
        assert!(text.starts_with("'a' has changed while the query read it\nhint: "), "{text}");
        let store = StoreError::NotFound { path: "b".to_owned(), source: "gone".into() };
        let file = DataFusionError::IoError(std::io::Error::other(store));
        let text = Failure::from(file).to_string();
        assert!(text.starts_with("'b' is not there\nhint: "), "{text}");
    }
}
