//! A pod's volumes as the worker names them to the VM: annotations of CreateContainer, in upstream's form.
//! Nothing measures them, so what is read is checked to the last character.
//!
//! ```text
//!   worker: CloudVolume by name ─▶ render ─▶ OCI annotation ─▶ VM: parse ─▶ Wanted, in the names' order
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// JSON: [`CloudVolume`] by name.
pub const ANNOTATION: &str = "io.confidentialcontainers.org.cloud_volumes";
/// Older images: comma list of mount sources that become mount points in the VM by other means.
pub const TARGETS: &str = "io.confidentialcontainers.org.peerpodvolumes.target_path";
/// What is mounted if the record of a volume does not say.
pub const DEFAULT_FS: &str = "ext4";
/// Volumes a pod may have: Azure's numbers end at 63, and no cloud takes more.
pub const MOST: usize = 64;
/// Longest annotation that is read, in bytes: [`MOST`] volumes with the longest ids of a cloud.
pub const LIMIT: usize = 128 << 10;
/// Longest id of a disk, in bytes; Azure's have some 250.
pub const DISK_MAX: usize = 1024;

/// One volume as it stands in the annotation: all values are text, and an empty one is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CloudVolume {
    /// Destination of the mount in the container.
    pub mount_point: String,
    /// ext4, ext3 or xfs.
    pub fs_type: String,
    /// Number the disk was attached under.
    pub lun: String,
    /// The cloud's id of the disk.
    pub disk_id: String,
    /// Group that is to own the volume's root directory.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fs_group: String,
    /// luks or luks2.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub encrypt_type: String,
    /// Name of the key at the key broker.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub key_id: String,
}

/// A volume that may be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// A plain file name; that of its mount point in the VM.
    pub name: String,
    /// Destination of the mount in the container.
    pub mount_point: String,
    /// What it holds, or is to hold.
    pub fs: Fs,
    /// Number the disk was attached under.
    pub lun: u32,
    /// The cloud's id of the disk; may be empty where the number finds it.
    pub disk: String,
    /// Group that is to own the volume's root directory.
    pub fs_group: Option<u32>,
    /// Name of the key, if the disk is encrypted.
    pub key: Option<String>,
}

/// File systems of volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fs {
    /// The default.
    Ext4,
    /// With a journal, without extents.
    Ext3,
    /// SGI's.
    Xfs,
}

impl Fs {
    /// As mount(8) has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Ext3 => "ext3",
            Self::Xfs => "xfs",
        }
    }

    /// Empty is the default.
    ///
    /// # Errors
    /// Names what may stand there.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        match text {
            "" | "ext4" => Ok(Self::Ext4),
            "ext3" => Ok(Self::Ext3),
            "xfs" => Ok(Self::Xfs),
            _ => Err("is none of ext4, ext3, xfs"),
        }
    }
}

/// Why an annotation is of no use. A container must not start without its volumes, so this refuses it.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Too long.
    #[error("annotation {ANNOTATION}: {0} bytes, at most {LIMIT} are read")]
    Long(usize),
    /// No JSON of that form.
    #[error("annotation {ANNOTATION}: {0}")]
    Json(#[from] serde_json::Error),
    /// More than a VM can have.
    #[error("annotation {ANNOTATION}: {0} volumes, a VM has at most {MOST}")]
    Many(usize),
    /// A value that cannot be used.
    #[error("annotation {ANNOTATION}: volume {name:?}: {field} {value:?} {reason}")]
    Value {
        /// Which volume, cut.
        name: String,
        /// Which of its fields.
        field: &'static str,
        /// Its value, cut.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// Reads the annotation; the volumes come in the order of their names.
///
/// # Errors
/// [`VolumeError`], naming volume and field.
pub fn parse(text: &str) -> Result<Vec<Wanted>, VolumeError> {
    if text.len() > LIMIT {
        return Err(VolumeError::Long(text.len()));
    }
    let all: BTreeMap<String, CloudVolume> = serde_json::from_str(text)?;
    if all.len() > MOST {
        return Err(VolumeError::Many(all.len()));
    }
    all.into_iter().map(|(name, volume)| check(name, volume)).collect()
}

fn check(name: String, volume: CloudVolume) -> Result<Wanted, VolumeError> {
    let of = |field, value: &str, reason| VolumeError::Value {
        name: short(&name),
        field,
        value: short(value),
        reason,
    };
    plain_name(&name).map_err(|reason| of("name", &name, reason))?;
    let CloudVolume { mount_point, fs_type, lun, disk_id, fs_group, encrypt_type, key_id } = volume;
    destination(&mount_point).map_err(|reason| of("mount_point", &mount_point, reason))?;
    let fs = Fs::parse(&fs_type).map_err(|reason| of("fs_type", &fs_type, reason))?;
    let number = number(&lun).filter(|n| *n < 1024);
    let lun = number.ok_or_else(|| of("lun", &lun, "is no number of a disk"))?;
    if !disk_id.is_empty() {
        disk(&disk_id).map_err(|reason| of("disk_id", &disk_id, reason))?;
    }
    let fs_group = match fs_group.as_str() {
        "" => None,
        // The last one means "leave it" to chown.
        text => Some(
            self::number(text)
                .filter(|g| *g < u32::MAX)
                .ok_or_else(|| of("fs_group", text, "is no group"))?,
        ),
    };
    let key = match encrypt_type.to_ascii_lowercase().as_str() {
        "" => None,
        "luks" | "luks2" => {
            key(&key_id).map_err(|reason| of("key_id", &key_id, reason))?;
            Some(key_id)
        }
        _ => return Err(of("encrypt_type", &encrypt_type, "is neither luks nor luks2")),
    };
    Ok(Wanted { mount_point, fs, lun, disk: disk_id, fs_group, key, name })
}

/// Digits alone.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

fn plain_name(text: &str) -> Result<(), &'static str> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    match (1..=64).contains(&text.len()) && !text.starts_with(['.', '-']) && text.bytes().all(fine)
    {
        true => Ok(()),
        false => Err("is no plain file name"),
    }
}

fn destination(text: &str) -> Result<(), &'static str> {
    if !text.starts_with('/') || text.len() > 4095 {
        return Err("is no absolute path");
    }
    if text.chars().any(char::is_control) {
        return Err("holds a control character");
    }
    Ok(())
}

/// Whether a text may be a cloud's id of a disk: a name, a path or an address of printable ASCII.
///
/// # Errors
/// What is wrong with it.
pub fn disk(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || text.len() > DISK_MAX {
        return Err("is no id of a disk");
    }
    if !text.bytes().all(|b| b.is_ascii_graphic() || b == b' ') || text.trim() != text {
        return Err("holds characters that no id of a disk has");
    }
    Ok(())
}

/// Whether a text may name a key at the key broker: `repository/type/tag`.
///
/// # Errors
/// What is wrong with it.
pub fn key(text: &str) -> Result<(), &'static str> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'/');
    match (1..=512).contains(&text.len()) && text.bytes().all(fine) && !text.contains("..") {
        true => Ok(()),
        false => Err("names no key"),
    }
}

/// Writes the annotation.
///
/// # Errors
/// Never for texts that were read before.
pub fn render(volumes: &BTreeMap<String, CloudVolume>) -> Result<String, serde_json::Error> {
    serde_json::to_string(volumes)
}

/// The mount sources of [`TARGETS`]; upstream may put a comma before the first one.
pub fn targets(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned).collect()
}

/// Enough of a value to recognise it in a message.
fn short(value: &str) -> String {
    const SHOWN: usize = 80;
    let mut shown: String = value.chars().take(SHOWN).collect();
    if shown.len() < value.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ONE: &str =
        r#"{"vol-0":{"mount_point":"/data","fs_type":"ext4","lun":"0","disk_id":"vol-0abc"}}"#;

    fn changed(field: &str, value: &str) -> Result<Vec<Wanted>, VolumeError> {
        let mut json: serde_json::Value = serde_json::from_str(ONE).expect("json");
        json["vol-0"][field] = value.into();
        parse(&json.to_string())
    }

    #[test]
    fn upstreams_form_is_read_in_the_order_of_names_and_written_the_same() {
        let text = r#"{"vol-1":{"mount_point":"/b","fs_type":"xfs","lun":"1","disk_id":"b","fs_group":"2000"},"vol-0":{"mount_point":"/a","fs_type":"","lun":"0","disk_id":"","encrypt_type":"LUKS","key_id":"default/key/1","new":"x"}}"#;
        let all = parse(text).expect("volumes");
        let names: Vec<_> = all.iter().map(|v| (v.name.as_str(), v.fs, v.lun)).collect();
        assert_eq!(names, [("vol-0", Fs::Ext4, 0), ("vol-1", Fs::Xfs, 1)]);
        assert_eq!(all[0].key.as_deref(), Some("default/key/1"));
        assert_eq!((all[1].fs_group, &all[1].key), (Some(2000), &None));
        let one: BTreeMap<String, CloudVolume> = serde_json::from_str(ONE).expect("json");
        assert_eq!(render(&one).expect("text"), ONE);
    }

    #[test]
    fn hostile_values_are_refused_by_name() {
        for (field, value) in [
            ("mount_point", ""),
            ("mount_point", "data"),
            ("mount_point", "/a\n"),
            ("fs_type", "btrfs"),
            ("fs_type", "../ext4"),
            ("lun", ""),
            ("lun", "-1"),
            ("lun", "+1"),
            ("lun", "1e1"),
            ("lun", "99999"),
            ("disk_id", "a\u{0}b"),
            ("disk_id", " a"),
            ("fs_group", "-1"),
            ("fs_group", "4294967295"),
            ("fs_group", "root"),
            ("encrypt_type", "plain"),
            ("encrypt_type", "luks2"),
        ] {
            let error = changed(field, value).expect_err(value).to_string();
            let named = if value == "luks2" { "key_id" } else { field };
            assert!(error.contains("\"vol-0\"") && error.contains(named), "{error}");
        }
        for name in ["", ".", "..", "a/b", "../x", "-rf", ".hidden", "a b", "ä"] {
            let text = ONE.replace("\"vol-0\"", &format!("{name:?}"));
            assert!(
                parse(&text).expect_err(name).to_string().contains("plain file name"),
                "{name}"
            );
        }
        for text in ["", "[]", "{\"vol-0\":1}", "{\"vol-0\":{\"lun\":0}}", "{"] {
            assert!(matches!(parse(text), Err(VolumeError::Json(_))), "{text}");
        }
        assert!(matches!(parse(&" ".repeat(LIMIT + 1)), Err(VolumeError::Long(_))));
        let many: Vec<_> = (0..=MOST).map(|n| format!("\"v{n}\":{{}}")).collect();
        let many = parse(&format!("{{{}}}", many.join(",")));
        assert!(matches!(many, Err(VolumeError::Many(_))));
    }

    #[test]
    fn empty_targets_are_skipped() {
        assert_eq!(targets(",/a,, /b ,"), ["/a", "/b"]);
        assert_eq!(targets(""), [""; 0]);
    }

    proptest! {
        #[test]
        fn hostile_text_never_panics(text: String) {
            let _ = parse(&text);
            let _ = changed("disk_id", &text);
            let _ = targets(&text);
        }
    }
}
