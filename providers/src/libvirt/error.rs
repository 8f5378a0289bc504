//! What libvirt's refusals mean (providers.md 6.4): one table, by code. Of internal errors the part of
//! libvirt that has them tells whether the effect is known.

use virt::error::{Error as Refusal, ErrorDomain as Part, ErrorNumber as Code};

use super::NAME;
use crate::{Error, Kind};

/// The kind of a refusal.
pub(super) fn kind(code: Code, part: Part) -> Kind {
    match code {
        Code::NoDomain | Code::NoStorageVolume => Kind::NotFound,
        Code::AuthFailed
        | Code::AuthCancelled
        | Code::AuthUnavailable
        | Code::AccessDenied
        | Code::OperationDenied => Kind::Denied,
        Code::NoStoragePool
        | Code::NoNetwork
        | Code::XmlError
        | Code::XmlDetail
        | Code::XmlInvalidSchema
        | Code::ConfigUnsupported
        | Code::CpuIncompatible
        | Code::InvalidArg
        | Code::ArgumentUnsupported
        | Code::NoSupport
        | Code::OsType
        | Code::UnknownHost
        // The host has no driver for what the URI names.
        | Code::NoConnect => Kind::Invalid,
        Code::NoMemory => Kind::Capacity,
        Code::Rpc
        | Code::SystemError
        | Code::InvalidConn
        | Code::NoServer
        | Code::NoClient
        | Code::Ssh
        | Code::Libssh
        | Code::GnutlsError
        | Code::OperationTimeout
        | Code::OperationAborted
        | Code::ResourceBusy
        | Code::AgentUnresponsive => Kind::Unavailable,
        // "client socket is closed", "connection closed due to keepalive timeout"
        Code::InternalError if matches!(part, Part::Rpc | Part::Remote | Part::Streams) => {
            Kind::Unavailable
        }
        _ => Kind::Other,
    }
}

/// The error of an operation; `what` is what was asked.
pub(super) fn error(operation: &'static str, what: &str, refusal: &Refusal) -> Error {
    let (code, part) = (refusal.code(), refusal.domain());
    let mut kind = kind(code, part);
    if operation == "create" && kind == Kind::NotFound {
        // What a request names is not there: it can never work.
        kind = Kind::Invalid;
    }
    let words: String = refusal.message().chars().filter(|c| !c.is_control()).take(500).collect();
    tracing::debug!(?code, ?part, kind = kind.as_str(), what, "libvirt refuses");
    Error::new(NAME, operation, kind, format!("{what}: {words} ({code:?})"))
}

/// What is not there is no error.
pub(super) fn maybe<T>(result: Result<T, Refusal>) -> Result<Option<T>, Refusal> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(e) if kind(e.code(), e.domain()) == Kind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_its_kind() {
        for (code, part, kind) in [
            (Code::NoDomain, Part::Qemu, Kind::NotFound),
            (Code::NoStorageVolume, Part::Storage, Kind::NotFound),
            (Code::AuthFailed, Part::Rpc, Kind::Denied),
            (Code::AccessDenied, Part::Access, Kind::Denied),
            (Code::OperationDenied, Part::Rpc, Kind::Denied),
            (Code::NoStoragePool, Part::Storage, Kind::Invalid),
            (Code::NoNetwork, Part::Network, Kind::Invalid),
            (Code::XmlError, Part::Domain, Kind::Invalid),
            (Code::ConfigUnsupported, Part::Qemu, Kind::Invalid),
            (Code::NoConnect, Part::None, Kind::Invalid),
            (Code::Rpc, Part::Rpc, Kind::Unavailable),
            (Code::SystemError, Part::Rpc, Kind::Unavailable),
            (Code::InternalError, Part::Rpc, Kind::Unavailable),
            (Code::InternalError, Part::Qemu, Kind::Other),
            (Code::NoMemory, Part::Qemu, Kind::Capacity),
            (Code::OperationInvalid, Part::Qemu, Kind::Other),
            (Code::HookScriptFailed, Part::Hook, Kind::Other),
            (Code::Last, Part::Last, Kind::Other),
        ] {
            assert_eq!(super::kind(code, part), kind, "{code:?} of {part:?}");
        }
    }
}
