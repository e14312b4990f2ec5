//! Credentials of stores by name: the tables `[credential.NAME]` of the configuration file.
//!
//! Always holds: they come from a file that not every user of the machine may read, and their values are shown
//! nowhere; mounts and coordination have the names alone.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use millrace_ops::settings::value_text;
use millrace_proto::terms::is_credential;

use super::ConfigError;

/// Name of the table that has the others.
pub(super) const TABLE: &str = "credential";
/// Keys whose values say where a store is and not how to get in.
const SHOWN: [&str; 8] = [
    "endpoint",
    "region",
    "profile",
    "allow_http",
    "skip_signature",
    "virtual_hosted_style_request",
    "timeout",
    "connect_timeout",
];

/// Options of one credential: keys of the store library, in small letters, with their values.
pub type CredentialOptions = Vec<(String, String)>;

/// All credentials of a node, by their names.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials(BTreeMap<String, CredentialOptions>);

impl Credentials {
    /// Reads the tables below `credential`, which stand in this file.
    ///
    /// # Errors
    /// [`ConfigError::Credential`] for a name or a value that is not allowed, or if every user of the machine
    /// may read the file.
    pub(super) fn read(file: &Path, tables: &toml::Value) -> Result<Credentials, ConfigError> {
        let refuse = |message: String| ConfigError::Credential { file: file.to_owned(), message };
        let form =
            || refuse(format!("write [{TABLE}.NAME], and below it lines of KEY = \"VALUE\""));
        let mut all = BTreeMap::new();
        for (name, table) in tables.as_table().ok_or_else(form)? {
            if !is_credential(name) {
                return Err(refuse(format!(
                    "{name:?} is not a name of a credential; choose 1 to 64 letters, digits, '-', '_' and '.'"
                )));
            }
            let mut options = Vec::new();
            for (key, value) in table.as_table().ok_or_else(form)? {
                let text = value_text(value, ':').filter(|_| !value.is_array());
                let text = text.ok_or_else(|| {
                    refuse(format!(
                        "key {key} of [{TABLE}.{name}] is not a text, a number or a switch"
                    ))
                })?;
                options.push((key.to_ascii_lowercase(), text));
            }
            all.insert(name.clone(), options);
        }
        let credentials = Credentials(all);
        // What cannot be asked for its mode could not have been read.
        let is_open = fs::metadata(file).is_ok_and(|found| found.mode() & 0o007 != 0);
        match credentials.has_secrets() && is_open {
            true => Err(refuse(format!(
                "it holds secrets, and every user of this machine may access it; `chmod 600 {}`",
                file.display()
            ))),
            false => Ok(credentials),
        }
    }

    /// Returns the options of the credential with this name.
    pub fn get(&self, name: &str) -> Option<&CredentialOptions> {
        self.0.get(name)
    }

    /// Returns all credentials in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &CredentialOptions)> {
        self.0.iter().map(|(name, options)| (name.as_str(), options))
    }

    /// Returns the names with what may be shown of each: None stands for a value that may not.
    pub fn shown(&self) -> impl Iterator<Item = (&str, Vec<(&str, Option<&str>)>)> {
        self.iter().map(|(name, options)| {
            (name, options.iter().map(|(key, value)| show(key, value)).collect())
        })
    }

    fn has_secrets(&self) -> bool {
        let options = self.0.values().flatten();
        options.into_iter().any(|(key, value)| show(key, value).1.is_none())
    }
}

fn show<'a>(key: &'a str, value: &'a str) -> (&'a str, Option<&'a str>) {
    let bare = key.strip_prefix("aws_").unwrap_or(key);
    // A proxy or an endpoint may carry a password.
    let is_shown = SHOWN.contains(&bare) && !value.contains('@');
    (key, is_shown.then_some(value))
}

impl fmt::Debug for Credentials {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn read(text: &str, mode: u32) -> Result<Credentials, String> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("it.toml");
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let table: toml::Table = text.parse().unwrap();
        Credentials::read(&file, &table[TABLE]).map_err(|error| error.to_string())
    }

    #[test]
    fn secrets_are_read_and_not_shown() {
        let text = "[credential.prod]\nAccess_key_id = \"AK\"\nsecret_access_key = \"hidden\"\n\
                    region = \"eu\"\n[credential.open]\nskip_signature = true\n";
        let credentials = read(text, 0o600).unwrap();
        let options = credentials.get("prod").unwrap();
        assert!(options.contains(&("secret_access_key".to_owned(), "hidden".to_owned())));
        assert!(options.contains(&("access_key_id".to_owned(), "AK".to_owned())));
        assert!(!format!("{credentials:?}").contains("hidden"), "{credentials:?}");
        let shown: Vec<_> = credentials.shown().collect();
        assert_eq!(shown[0], ("open", vec![("skip_signature", Some("true"))]));
        assert!(shown[1].1.contains(&("region", Some("eu"))));
        assert!(shown[1].1.contains(&("secret_access_key", None)), "{shown:?}");
    }

    #[test]
    fn a_file_with_secrets_is_not_for_every_user() {
        let told = read("[credential.a]\naccess_key_id = \"AK\"\n", 0o644).unwrap_err();
        assert!(told.contains("chmod 600"), "{told}");
        assert!(read("[credential.a]\naccess_key_id = \"AK\"\n", 0o640).is_ok());
        assert!(read("[credential.a]\nprofile = \"p\"\n", 0o644).is_ok(), "it holds none");
    }

    #[test]
    fn what_is_not_a_credential_is_refused() {
        for (text, reason) in [
            ("credential = \"a\"\n", "[credential.NAME]"),
            ("[credential]\na = \"b\"\n", "[credential.NAME]"),
            ("[credential.\"a b\"]\nprofile = \"p\"\n", "not a name of a credential"),
            ("[credential.a]\nprofile = [\"p\"]\n", "key profile of [credential.a]"),
        ] {
            let told = read(text, 0o600).unwrap_err();
            assert!(told.contains(reason), "{text}: {told}");
        }
    }
}
