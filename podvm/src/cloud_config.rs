//! User data as a strict subset of cloud-config: `write_files` with `path` and `content`.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::contract::{ALLOWED, USER_DATA_LIMIT};

/// A file that travels in user data.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    /// Absolute path in the VM.
    pub path: String,
    /// Text; ends in a newline after the journey.
    pub content: String,
}

/// One of them has the VM's key in it.
impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} bytes", self.path, self.content.len())
    }
}

/// What was in the user data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// Files to write.
    pub files: Vec<File>,
    /// Paths that a worker may not write.
    pub skipped: Vec<String>,
}

/// Why user data are refused.
#[derive(Debug, thiserror::Error)]
pub enum CloudConfigError {
    /// More than is ever read.
    #[error("user data: {0} bytes, at most {USER_DATA_LIMIT} are read")]
    TooLong(usize),
    /// The first line says it is something else.
    #[error("user data: the first line is not #cloud-config")]
    Header,
    /// Not the YAML that is understood.
    #[error("user data: {0}")]
    Yaml(String),
    /// The same file is there twice.
    #[error("user data: write_files: {0} is there twice")]
    Twice(String),
    /// A file's text cannot stand in a block of YAML.
    #[error("user data: {path}: {reason}")]
    Content {
        /// Which file.
        path: String,
        /// What is in the way.
        reason: &'static str,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    write_files: Vec<Item>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    path: String,
    #[serde(default)]
    content: String,
}

/// Writes the text form, as upstream's worker does.
///
/// # Errors
/// When a content holds characters that a literal block cannot.
pub fn render(files: &[File]) -> Result<String, CloudConfigError> {
    let mut out = "#cloud-config\n\nwrite_files:".to_owned();
    out.push_str(if files.is_empty() { " []\n" } else { "\n" });
    for file in files {
        out.push_str(&format!("  - path: {}\n", file.path));
        if let Some(reason) = unprintable(&file.content) {
            return Err(CloudConfigError::Content { path: file.path.clone(), reason });
        }
        if !file.content.is_empty() {
            out.push_str("    content: |\n");
            for line in file.content.lines() {
                out.push_str(if line.is_empty() { "" } else { "      " });
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    Ok(out)
}

fn unprintable(content: &str) -> Option<&'static str> {
    if content.starts_with([' ', '\n']) {
        return Some("it begins with a space or an empty line");
    }
    let control = |c: char| c.is_control() && c != '\n' && c != '\t';
    content.contains(control).then_some("it holds a control character")
}

/// Reads user data. Content of files that may not be written is dropped.
///
/// # Errors
/// When it is no such cloud-config, or a file is there twice.
pub fn parse(text: &str) -> Result<Parsed, CloudConfigError> {
    if text.len() > USER_DATA_LIMIT {
        return Err(CloudConfigError::TooLong(text.len()));
    }
    if text.lines().next().map(str::trim_end) != Some("#cloud-config") {
        return Err(CloudConfigError::Header);
    }
    // An alias would be a few bytes that cost as many as the text they stand for.
    let options = serde_saphyr::options! { budget: serde_saphyr::budget! { max_aliases: 0 } };
    let document: Document = serde_saphyr::from_str_with_options(text, options)
        .map_err(|e| CloudConfigError::Yaml(one_line(&e)))?;
    let mut parsed = Parsed::default();
    let mut seen = BTreeSet::new();
    for Item { path, content } in document.write_files {
        if !seen.insert(path.clone()) {
            return Err(CloudConfigError::Twice(path));
        }
        if ALLOWED.contains(&path.as_str()) {
            parsed.files.push(File { path, content });
        } else {
            parsed.skipped.push(path);
        }
    }
    Ok(parsed)
}

/// An error without the excerpt of the text below it: user data hold secrets.
fn one_line(error: &impl ToString) -> String {
    error.to_string().lines().next().unwrap_or("not YAML").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{APF, AUTH, INITDATA, SCRATCH_MARKER};

    fn file(path: &str, content: &str) -> File {
        File { path: path.to_owned(), content: content.to_owned() }
    }

    #[test]
    fn comes_back_with_one_final_newline() {
        let files = [file(APF, "{\n    \"a\": \"b: c\"\n}"), file(AUTH, "{}\n")];
        let marker = file("/run/peerpod/scratch-space.marker", "");
        let text = render(&[files[0].clone(), files[1].clone(), marker.clone()]).expect("render");
        let back = parse(&text).expect("parse");
        assert_eq!(back.files[0].content, "{\n    \"a\": \"b: c\"\n}\n");
        assert_eq!(back.files[1].content, "{}\n");
        assert_eq!(back.files[2], marker);
    }

    #[test]
    fn no_files_come_back_as_no_files() {
        let text = render(&[]).expect("render");
        assert_eq!(parse(&text).expect("parse"), Parsed::default());
    }

    #[test]
    fn upstreams_form_is_read_and_is_what_we_write() {
        let text = include_str!("../../tests/fixtures/user-data");
        let back = parse(text).expect("parse");
        let paths: Vec<&str> = back.files.iter().map(|f| f.path.as_str()).collect();
        assert_eq!(paths, [APF, INITDATA, SCRATCH_MARKER]);
        assert_eq!(back.files[1].content, "H4sIAAAA\n");
        assert_eq!(back.files[2].content, "");
        assert_eq!(render(&back.files).expect("render"), text);
    }

    #[test]
    fn forbidden_paths_are_skipped_and_counted() {
        let text = "#cloud-config\nwrite_files:\n- path: /etc/shadow\n  content: x\n- path: \
                    /run/peerpod/../../etc/passwd\n- path: /run/peerpod/aa.toml\n  content: y\n";
        let back = parse(text).expect("parse");
        assert_eq!(back.skipped, ["/etc/shadow", "/run/peerpod/../../etc/passwd"]);
        assert_eq!(back.files.len(), 1);
    }

    #[test]
    fn text_that_stands_for_other_text_is_refused() {
        let anchor = "#cloud-config\nwrite_files:\n- path: /run/peerpod/aa.toml\n  content: &a x\n";
        assert_eq!(parse(anchor).expect("an anchor alone").files, [file(ALLOWED[0], "x")]);
        let alias = format!("{anchor}- path: /run/peerpod/cdh.toml\n  content: *a\n");
        let error = parse(&alias).expect_err("an alias").to_string();
        assert!(error.contains("aliases"), "{error}");
    }

    #[test]
    fn a_file_twice_other_keys_and_other_texts_are_refused() {
        let twice = "#cloud-config\nwrite_files:\n- path: /run/peerpod/aa.toml\n- path: /run/peerpod/aa.toml\n";
        assert!(matches!(parse(twice), Err(CloudConfigError::Twice(_))));
        let extra = "#cloud-config\nruncmd:\n- reboot\nwrite_files: []\n";
        let error = parse(extra).expect_err("extra").to_string();
        assert!(error.contains("runcmd"), "{error}");
        let key = "#cloud-config\nwrite_files:\n- path: /run/peerpod/aa.toml\n  owner: root\n";
        assert!(parse(key).expect_err("owner").to_string().contains("owner"));
        assert!(matches!(parse("#!/bin/sh\n"), Err(CloudConfigError::Header)));
        assert!(matches!(parse("#cloud-config\nwrite_files: [\n"), Err(CloudConfigError::Yaml(_))));
        let long = "#".repeat(USER_DATA_LIMIT + 1);
        assert!(matches!(parse(&long), Err(CloudConfigError::TooLong(_))));
    }
}
