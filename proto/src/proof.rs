//! Proofs that a peer knows a secret, which do not reveal it, and what is derived from a secret.
//!
//! Both sides choose a number for each exchange, so that a recorded exchange cannot be used again, and
//! each side proves itself to the other. The rules are section 16 of PROTOCOL.md. Pure functions: the
//! random numbers come from the caller, which gets them from the system.

use std::fmt;
use std::sync::Arc;

use hmac::{Hmac, Mac as _};
use rkyv::{Archive, Serialize};
use sha2::Sha256;

use crate::FileId;

/// Fewest bytes of a secret. Guessed: half of them random are 64 bits, out of reach over a network.
pub const SECRET_LENGTH_MIN: usize = 16;
/// Most bytes of a secret. Guessed: more than any secret needs.
pub const SECRET_LENGTH_MAX: usize = 4096;

/// A number that is used once.
pub type Nonce = [u8; 32];
/// A code that a holder of a secret computes over a text, so that other holders recognise the text as
/// its own.
pub type Mac = [u8; 32];

/// A secret that several processes know.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<[u8]>);

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Secret(..)")
    }
}

impl From<[u8; 32]> for Secret {
    fn from(bytes: [u8; 32]) -> Secret {
        Secret(bytes.as_slice().into())
    }
}

impl Secret {
    /// Reads the secret from the content of a file: white space around it does not count. None if it has
    /// fewer than [`SECRET_LENGTH_MIN`] or more than [`SECRET_LENGTH_MAX`] bytes.
    pub fn parse(content: &[u8]) -> Option<Secret> {
        let secret = content.trim_ascii();
        let is_long_enough = (SECRET_LENGTH_MIN..=SECRET_LENGTH_MAX).contains(&secret.len());
        is_long_enough.then(|| Secret(secret.into()))
    }

    /// Returns the HMAC-SHA256 of these parts, one after the other.
    fn hmac(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut hmac =
            Hmac::<Sha256>::new_from_slice(&self.0).expect("a key of HMAC may have any length");
        parts.iter().for_each(|part| hmac.update(part));
        hmac
    }

    /// Returns the code of a text for one purpose. Codes for different purposes have nothing in common.
    ///
    /// # Panics
    /// If the purpose has a zero byte, which ends it.
    pub fn code(&self, purpose: &str, text: &[u8]) -> Mac {
        assert!(!purpose.contains('\0'), "a zero byte ends the purpose");
        self.hmac(&[purpose.as_bytes(), &[0], text]).finalize().into_bytes().into()
    }

    /// True if this is the code of a text for one purpose. The time does not depend on where the two
    /// differ.
    pub fn verify(&self, purpose: &str, text: &[u8], code: &[u8]) -> bool {
        self.hmac(&[purpose.as_bytes(), &[0], text]).verify_slice(code).is_ok()
    }
}

/// The role in which a connection asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Role {
    /// A member of the cluster: it knows the cluster's secret.
    Member = 1,
    /// An administrator may change what the node does: it knows the token of the node.
    Administrator = 2,
}

impl Role {
    /// Returns the role with this number.
    pub fn from_code(code: u8) -> Option<Role> {
        [Role::Member, Role::Administrator].into_iter().find(|role| *role as u8 == code)
    }
}

/// `Challenge`: the client wants to prove something.
#[derive(Archive, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChallengeRequest {
    /// What the client wants to prove that it is, see [`Role`].
    pub role: u8,
    /// Number of the run of the node that is meant, as in `Member`; 0 for any node.
    pub node: u64,
    /// Chosen for this exchange.
    pub nonce: Nonce,
}

/// Reply to `Challenge`.
#[derive(Archive, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChallengeReply {
    /// Chosen for this exchange.
    pub nonce: Nonce,
}

/// `Prove`, the reply to it, and the reply to `Vouch`.
#[derive(Archive, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// See [`Exchange::proof`] and [`BlockMac`].
    pub mac: Mac,
}

/// The code of a block. A member that knows the secret of the cluster recognises by it what another
/// member read from the source. It covers the bytes themselves, because a checksum of 32 bits can be
/// forged.
#[derive(Clone)]
pub struct BlockMac(Hmac<Sha256>);

impl fmt::Debug for BlockMac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("BlockMac(..)")
    }
}

impl BlockMac {
    /// Begins the code of this block of a version of a file. The `length` bytes of the block are still
    /// to be added.
    pub fn new(secret: &Secret, file: FileId, version: u64, block: u32, length: u32) -> BlockMac {
        BlockMac(secret.hmac(&[
            b"millrace 1 block\0",
            &file.0.to_le_bytes(),
            &version.to_le_bytes(),
            &block.to_le_bytes(),
            &length.to_le_bytes(),
        ]))
    }

    /// Adds the next bytes of the block.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Returns the code, once all bytes were added.
    pub fn finish(&self) -> Mac {
        self.0.clone().finalize().into_bytes().into()
    }

    /// True if this is the code. The time does not depend on where the two differ.
    pub fn verify(&self, code: &Mac) -> bool {
        self.0.clone().verify_slice(code).is_ok()
    }
}

/// Which side of a connection proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that sends requests.
    Client,
    /// The one that answers.
    Node,
}

/// What both sides said before they prove themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Role in the request.
    pub role: u8,
    /// Number of the node's run in the request.
    pub node: u64,
    /// Nonce of the request.
    pub client: Nonce,
    /// Nonce of the reply.
    pub answer: Nonce,
}

impl Exchange {
    /// Returns the bytes that are signed.
    fn text(&self) -> [u8; 73] {
        let mut text = [0; 73];
        text[0] = self.role;
        text[1..9].copy_from_slice(&self.node.to_le_bytes());
        text[9..41].copy_from_slice(&self.client);
        text[41..].copy_from_slice(&self.answer);
        text
    }

    /// Returns the proof that a side knows the secret.
    pub fn proof(&self, secret: &Secret, side: Side) -> Mac {
        secret.code(purpose(side), &self.text())
    }

    /// True if this is the proof of a side.
    pub fn verify(&self, secret: &Secret, side: Side, proof: &Mac) -> bool {
        secret.verify(purpose(side), &self.text(), proof)
    }
}

fn purpose(side: Side) -> &'static str {
    match side {
        Side::Client => "millrace 1 prove client",
        Side::Node => "millrace 1 prove node",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::parse(text.as_bytes()).expect("long enough")
    }

    #[test]
    fn codes_are_hmac_sha256() {
        // Computed with the hmac of Python.
        let code = secret("0123456789abcdef").code("purpose", b"text");
        let hex: String = code.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "3ba442636eb0032e37558bbfe15a8a6151bc9650eaf4e6be432035ac6f883839");
        assert!(secret("0123456789abcdef").verify("purpose", b"text", &code));
        assert!(!secret("0123456789abcdef").verify("purpose", b"text", &code[..31]));
        assert!(!secret("0123456789abcdef").verify("purpose2", b"text", &code));
    }

    #[test]
    fn secrets_are_long_enough_and_never_shown() {
        assert!(Secret::parse(b"0123456789abcde").is_none());
        assert!(Secret::parse(&[b'x'; SECRET_LENGTH_MAX + 1]).is_none());
        assert_eq!(secret(" 0123456789abcdef\n"), secret("0123456789abcdef"));
        assert_eq!(format!("{:?}", secret("0123456789abcdef")), "Secret(..)");
    }

    #[test]
    fn a_block_is_recognised_by_all_that_names_it_and_by_its_bytes() {
        let secret = secret("0123456789abcdef");
        let mac = |file, version, block, bytes: &[u8]| {
            let length = bytes.len() as u32;
            let mut mac = BlockMac::new(&secret, FileId(file), version, block, length);
            bytes.chunks(3).for_each(|part| mac.update(part));
            mac
        };
        let code = mac(1, 2, 3, b"some bytes").finish();
        assert!(mac(1, 2, 3, b"some bytes").verify(&code));
        let others = [
            mac(2, 2, 3, b"some bytes"),
            mac(1, 3, 3, b"some bytes"),
            mac(1, 2, 4, b"some bytes"),
            mac(1, 2, 3, b"other byte"),
            mac(1, 2, 3, b"some byte"),
        ];
        assert!(others.iter().all(|other| !other.verify(&code)));
    }

    #[test]
    fn a_proof_counts_for_its_side_its_exchange_and_its_secret() {
        let (mine, other) = (secret("0123456789abcdef"), secret("0123456789abcdeF"));
        let exchange = Exchange { role: 1, node: 7, client: [1; 32], answer: [2; 32] };
        let proof = exchange.proof(&mine, Side::Client);
        assert!(exchange.verify(&mine, Side::Client, &proof));
        assert!(!exchange.verify(&mine, Side::Node, &proof), "what was sent is not sent back");
        assert!(!exchange.verify(&other, Side::Client, &proof));
        let others = [
            Exchange { role: 2, ..exchange },
            Exchange { node: 8, ..exchange },
            Exchange { client: [3; 32], ..exchange },
            Exchange { answer: [3; 32], ..exchange },
        ];
        for other in others {
            assert!(!other.verify(&mine, Side::Client, &proof), "{other:?}");
        }
    }
}
