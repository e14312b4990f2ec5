//! Profiles of the AWS tools: `~/.aws/credentials` and `~/.aws/config`.
//!
//! Owns where these files are, and which of their keys count: the keys of a user, the token of a session, the
//! region and the endpoint. A profile that takes its keys from elsewhere (a role, a sign-on, a program) is
//! refused, because passing that over would end in another identity.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;

use millrace_node::under_store::StoreError;

/// The profile that is meant where none is named.
pub(crate) const DEFAULT: &str = "default";
/// Keys of a profile, and what they are called by the store library.
const KEYS: [(&str, &str); 5] = [
    ("aws_access_key_id", "access_key_id"),
    ("aws_secret_access_key", "secret_access_key"),
    ("aws_session_token", "session_token"),
    ("region", "region"),
    ("endpoint_url", "endpoint"),
];
/// Keys of profiles whose credentials come from elsewhere.
const ELSEWHERE: [&str; 6] = [
    "role_arn",
    "credential_process",
    "sso_session",
    "sso_start_url",
    "web_identity_token_file",
    "credential_source",
];

/// The two files.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) credentials: Option<PathBuf>,
    pub(crate) config: Option<PathBuf>,
}

impl Files {
    /// Finds them as the AWS tools do, from the variables of a process.
    pub(crate) fn of(variable: impl Fn(&str) -> Option<String>) -> Files {
        let place = |name: &str, file: &str| {
            let named = variable(name).filter(|it| !it.is_empty()).map(PathBuf::from);
            named.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".aws").join(file)))
        };
        Files {
            credentials: place("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
            config: place("AWS_CONFIG_FILE", "config"),
        }
    }

    /// Returns what a profile says, by keys of the store library; None if it is in neither file.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] if a file cannot be read, or the profile takes its keys from elsewhere.
    pub(crate) fn profile(&self, name: &str) -> Result<Option<Vec<(String, String)>>, StoreError> {
        let section = match name {
            DEFAULT => DEFAULT.to_owned(),
            name => format!("profile {name}"),
        };
        let mut found = None;
        // What is in the credentials file counts more.
        for (file, section) in [(&self.config, section.as_str()), (&self.credentials, name)] {
            let Some(file) = file else { continue };
            let text = match std::fs::read_to_string(file) {
                Ok(text) => text,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => {
                    return Err(StoreError::Unusable(format!("read {}: {error}", file.display())));
                }
            };
            let mut sections = sections_of(&text);
            if let Some(keys) = sections.remove(section) {
                found.get_or_insert_with(BTreeMap::new).extend(keys);
            }
        }
        let Some(found) = found else { return Ok(None) };
        let has_keys = found.contains_key(KEYS[0].0);
        if let Some(key) = ELSEWHERE.iter().find(|key| found.contains_key(**key) && !has_keys) {
            return Err(StoreError::Unusable(format!(
                "the profile {name} has {key}, which is not supported here: give it aws_access_key_id and \
                 aws_secret_access_key, or leave the profile out on a machine that has a role of its own"
            )));
        }
        let options = KEYS
            .iter()
            .filter_map(|(key, option)| Some(((*option).to_owned(), found.get(*key)?.clone())));
        Ok(Some(options.collect()))
    }

    /// Returns the names of the files, for people.
    pub(crate) fn names(&self) -> String {
        let files = [&self.credentials, &self.config].into_iter().flatten();
        files.map(|file| file.display().to_string()).collect::<Vec<_>>().join(" and ")
    }
}

/// Reads an INI file as the AWS tools write it: sections, lines of `key = value`, comments after `#` or `;`.
/// Nested keys, which stand behind spaces, are left out.
fn sections_of(text: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut sections: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    let mut section = None;
    for line in text.lines() {
        let bare = line.trim();
        if bare.is_empty() || bare.starts_with(['#', ';']) {
            continue;
        }
        if let Some((name, _)) = bare.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            let name = name.split_whitespace().collect::<Vec<_>>().join(" ");
            section = Some(sections.entry(name).or_default());
            continue;
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        if let (Some(section), false) = (&mut section, key.starts_with([' ', '\t'])) {
            // A comment begins behind a space: keys may have the mark itself.
            let value = value.split(" #").next().unwrap_or_default();
            let value = value.split(" ;").next().unwrap_or_default();
            section.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    sections
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(credentials: &str, config: &str) -> (tempfile::TempDir, Files) {
        let directory = tempfile::tempdir().unwrap();
        let place = |name: &str, text: &str| {
            let file = directory.path().join(name);
            std::fs::write(&file, text).unwrap();
            Some(file)
        };
        let files = Files {
            credentials: place("credentials", credentials),
            config: place("config", config),
        };
        (directory, files)
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_profile_is_what_both_files_say() {
        let (_directory, files) = files(
            "# mine\n[default]\naws_access_key_id = A\naws_secret_access_key=s#e=c\n\n\
             [prod]\nAWS_ACCESS_KEY_ID = B ; of prod\naws_secret_access_key = t\naws_session_token = u\n",
            "[default]\nregion = eu\noutput = json\n[profile  prod]\nregion = us\ns3 =\n  addressing_style = path\n\
             endpoint_url = http://store:9000\n[profile role]\nrole_arn = arn:x\nsource_profile = prod\n",
        );
        let found = files.profile(DEFAULT).unwrap().unwrap();
        let expect = [("access_key_id", "A"), ("secret_access_key", "s#e=c"), ("region", "eu")];
        assert_eq!(found, pairs(&expect));
        let found = files.profile("prod").unwrap().unwrap();
        let expect = [
            ("access_key_id", "B"),
            ("secret_access_key", "t"),
            ("session_token", "u"),
            ("region", "us"),
            ("endpoint", "http://store:9000"),
        ];
        assert_eq!(found, pairs(&expect));
        assert_eq!(files.profile("none").unwrap(), None);
        let told = files.profile("role").unwrap_err().to_string();
        assert!(told.contains("role_arn"), "{told}");
    }

    #[test]
    fn files_are_where_variables_say_or_below_home() {
        let home = Files::of(|name| (name == "HOME").then(|| "/where/it/is".to_owned()));
        assert_eq!(home.names(), "/where/it/is/.aws/credentials and /where/it/is/.aws/config");
        let named = Files::of(|name| (name == "AWS_CONFIG_FILE").then(|| "/etc/aws".to_owned()));
        assert_eq!(named.names(), "/etc/aws");
        assert_eq!(named.profile(DEFAULT).unwrap(), None, "a file that is not there says nothing");
    }
}
