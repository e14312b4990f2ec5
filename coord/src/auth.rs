//! Who a connection has shown to be: its identities, and how an auth request adds one.
//!
//! A connection starts with its address, scheme `ip`. What a client shows later is added, never
//! removed, and goes with each of its commands, so number and size are limited. The replies of each
//! scheme are those of ZooKeeper 3.8 with its standard providers; ACLs are judged elsewhere.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};

use crate::command::Identity;

/// Most identities of a connection, its address included. Guessed: clients have one or two.
pub const IDENTITIES_MAX: usize = 64;
/// Longest proof in bytes. Guessed: user and password; tokens are shorter too.
pub const AUTH_SIZE_MAX: usize = 4096;

/// One identity, owned by its connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OwnedIdentity {
    /// `ip`, `digest` or `super`.
    pub scheme: &'static str,
    pub id: Box<str>,
}

impl OwnedIdentity {
    /// The identity as commands carry it.
    pub fn borrow(&self) -> Identity<'_> {
        Identity { scheme: self.scheme, id: &self.id }
    }

    /// What whoAmI shows: of a digest the user, of others the id.
    pub fn user(&self) -> &str {
        match self.scheme {
            "digest" => self.id.split_once(':').map_or(&*self.id, |(user, _)| user),
            _ => &self.id,
        }
    }
}

/// Why an auth request fails: the client is told -115 (AUTHFAILED), then the connection closes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// `world` and `auth` name nobody, `x509` needs TLS, `sasl` its own request; others are
    /// unknown.
    #[error("nothing can be shown with the scheme {scheme:?}; use digest or ip")]
    Scheme {
        /// What was asked for.
        scheme: String,
    },
    /// The proof is longer than [`AUTH_SIZE_MAX`].
    #[error("credentials of {size} bytes; {AUTH_SIZE_MAX} are allowed")]
    TooLong {
        /// Its bytes.
        size: usize,
    },
    /// The connection has [`IDENTITIES_MAX`] identities.
    #[error("a connection may have {IDENTITIES_MAX} identities")]
    TooMany,
}

/// All identities of one connection, each once, in the order in which they were shown.
#[derive(Debug, Clone)]
pub struct Identities {
    list: Vec<OwnedIdentity>,
}

impl Identities {
    /// Those of a new connection: its address alone.
    pub fn new(address: IpAddr) -> Identities {
        Identities { list: vec![OwnedIdentity { scheme: "ip", id: host_text(address).into() }] }
    }

    /// Takes an auth request. Returns whether anything new was shown.
    ///
    /// # Errors
    /// [`AuthError`]; nothing was added, and the connection has to be closed.
    pub fn authenticate(
        &mut self,
        scheme: &str,
        auth: &[u8],
        address: IpAddr,
        super_digest: Option<&str>,
    ) -> Result<bool, AuthError> {
        let shown = authenticate(scheme, auth, address, super_digest)?;
        let new: Vec<_> = shown.into_iter().filter(|one| !self.list.contains(one)).collect();
        if self.list.len() + new.len() > IDENTITIES_MAX {
            return Err(AuthError::TooMany);
        }
        let is_new = !new.is_empty();
        self.list.extend(new);
        Ok(is_new)
    }

    /// The identities as commands carry them.
    pub fn iter(&self) -> impl Iterator<Item = Identity<'_>> {
        self.list.iter().map(OwnedIdentity::borrow)
    }

    /// Scheme and user of each, for whoAmI.
    pub fn who_am_i(&self) -> impl Iterator<Item = (&str, &str)> {
        self.list.iter().map(|identity| (identity.scheme, identity.user()))
    }
}

/// What an auth request shows. `ip` shows the address of the connection whatever it says; `digest`
/// takes any bytes, also without a colon, and shows `super` as well where its digest is
/// `super_digest`.
///
/// # Errors
/// [`AuthError::Scheme`], [`AuthError::TooLong`].
pub fn authenticate(
    scheme: &str,
    auth: &[u8],
    address: IpAddr,
    super_digest: Option<&str>,
) -> Result<Vec<OwnedIdentity>, AuthError> {
    if auth.len() > AUTH_SIZE_MAX {
        return Err(AuthError::TooLong { size: auth.len() });
    }
    match scheme {
        "ip" => Ok(vec![OwnedIdentity { scheme: "ip", id: host_text(address).into() }]),
        "digest" => {
            // Java decodes the bytes before it hashes them: bad UTF-8 becomes U+FFFD.
            let id = digest_id(&String::from_utf8_lossy(auth));
            let is_super = super_digest.is_some_and(|digest| digest == id);
            let mut shown = Vec::with_capacity(2);
            if is_super {
                shown.push(OwnedIdentity { scheme: "super", id: "".into() });
            }
            shown.push(OwnedIdentity { scheme: "digest", id: id.into() });
            Ok(shown)
        }
        _ => Err(AuthError::Scheme { scheme: scheme.chars().take(64).collect() }),
    }
}

/// The id of `user:password`: `user:` and the base64 of the SHA-1 of both together
/// (`DigestAuthenticationProvider.generateDigest`).
pub fn digest_id(credentials: &str) -> String {
    let user = credentials.split(':').next().unwrap_or_default();
    format!("{user}:{}", STANDARD.encode(Sha1::digest(credentials.as_bytes())))
}

/// An address as Java writes it: IPv6 in eight groups, IPv4 also where it came in an IPv6 one.
pub fn host_text(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let groups = address.segments().map(|group| format!("{group:x}"));
            groups.join(":")
        }
    }
}

#[cfg(test)]
mod tests;
