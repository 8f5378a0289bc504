//! The idempotency id of one attempt: the same for every repetition of it, whoever repeats it, and
//! of no use to anybody else (providers.md 2.2).

use sha2::{Digest, Sha256};

/// One attempt's id, in the forms that clouds take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token([u8; 32]);

impl Token {
    /// Of the attempt to make `sandbox`'s VM at the plan's candidate `number`.
    pub fn new(installation: &str, sandbox: &str, number: u32) -> Self {
        Self::of("create", installation, sandbox, number)
    }

    /// Of something else that is done for that attempt, `delete` for example.
    pub fn of(act: &str, installation: &str, sandbox: &str, number: u32) -> Self {
        let digest = Sha256::new()
            .chain_update(act)
            .chain_update([0])
            .chain_update(installation)
            .chain_update([0])
            .chain_update(sandbox)
            .chain_update([0])
            .chain_update(number.to_be_bytes());
        Self(digest.finalize().into())
    }

    /// 64 hexadecimal characters, the longest that EC2 takes as ClientToken.
    pub fn hex(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// A UUID of version 8, made from the same digest (RFC 9562, 5.8); never the zero UUID, which
    /// Google refuses as requestId.
    pub fn uuid(&self) -> String {
        let mut bytes = self.0;
        bytes[6] = (bytes[6] & 0x0f) | 0x80;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        let hex = Self(bytes).hex();
        let part = |from, to| hex.get(from..to).unwrap_or_default();
        [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_the_same_for_the_same_attempt_alone() {
        let token = Token::new("inst", "sandbox", 1);
        assert_eq!(token, Token::new("inst", "sandbox", 1));
        for other in [
            Token::new("inst", "sandbox", 2),
            Token::new("inst", "sandbo", 1),
            Token::new("ins", "tsandbox", 1),
            Token::of("delete", "inst", "sandbox", 1),
        ] {
            assert_ne!(token.hex(), other.hex());
            assert_ne!(token.uuid(), other.uuid());
        }
    }

    #[test]
    fn has_the_forms_that_clouds_take() {
        let token = Token::new("inst", "sandbox", 0);
        assert_eq!(token.hex().len(), 64);
        let uuid = token.uuid();
        let lengths: Vec<usize> = uuid.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12], "{uuid}");
        assert_eq!(uuid.as_bytes()[14], b'8', "{uuid}");
        assert!(b"89ab".contains(&uuid.as_bytes()[19]), "{uuid}");
    }
}
