//! What Kubernetes takes as a label ("Labels and Selectors", "Syntax and character set"), and the list of
//! those that become tags.

/// Longest name of a key and longest value.
const NAME_MAX: usize = 63;
/// Longest prefix of a key.
const PREFIX_MAX: usize = 253;
/// No cloud takes more tags on a resource.
const WANTED_MAX: usize = 64;

/// A label whose value becomes a tag of the VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CostTag {
    /// Key of the label.
    pub label: String,
    /// Key of the tag; each cloud bends it as far as it must.
    pub tag: String,
}

/// Whether that is the key of a label: `name` or `prefix/name`.
pub fn is_key(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && is_name(name),
        None => is_name(text),
    }
}

/// Whether that is the value of a label; it may be empty.
pub fn is_value(text: &str) -> bool {
    text.is_empty() || is_name(text)
}

fn is_name(text: &str) -> bool {
    let ends = text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric());
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    ends && text.len() <= NAME_MAX && text.bytes().all(inner)
}

fn is_subdomain(text: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    text.len() <= PREFIX_MAX && text.split('.').all(is_part)
}

/// `label` or `label=tag`.
///
/// # Errors
/// What is wrong with it, as a sentence that begins with it.
pub fn cost_tag(text: &str) -> Result<CostTag, String> {
    let (label, tag) = match text.split_once('=') {
        Some((label, tag)) => (label.trim(), tag.trim()),
        None => (text, text),
    };
    if !is_key(label) {
        return Err(format!("{label:?} is not the key of a label"));
    }
    if tag.is_empty() || tag.chars().any(char::is_control) {
        return Err(format!("{text:?} has no key of a tag"));
    }
    if peerpod_providers::tags::is_reserved(tag) {
        return Err(format!("{tag:?} begins with peerpodd-, which is kept for our own tags"));
    }
    Ok(CostTag { label: label.to_owned(), tag: tag.to_owned() })
}

/// All of a list; none of it twice.
///
/// # Errors
/// The first that is wrong.
pub fn cost_tags(parts: &[String]) -> Result<Vec<CostTag>, String> {
    let mut all: Vec<CostTag> = Vec::new();
    for part in parts {
        let new = cost_tag(part)?;
        if all.iter().any(|other| other.label == new.label) {
            return Err(format!("label {:?} is given twice", new.label));
        }
        // To some clouds keys that differ in their case are the same.
        if all.iter().any(|other| other.tag.eq_ignore_ascii_case(&new.tag)) {
            return Err(format!("tag {:?} is given twice", new.tag));
        }
        all.push(new);
    }
    match all.len() {
        many if many > WANTED_MAX => Err(format!("{many} labels, at most {WANTED_MAX} make sense")),
        _ => Ok(all),
    }
}
