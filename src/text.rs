//! What people read: tables, and text that others wrote. Names, errors and consoles come from guests,
//! clouds and annotations; nothing of them may steer the terminal of whoever reads it.

/// One line: whatever controls a terminal is a blank.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Several lines, each ended; whatever else controls a terminal is shown as unknown.
pub(crate) fn printable(text: &str) -> String {
    let mut text: String = text
        .replace("\r\n", "\n")
        .chars()
        .map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c })
        .collect();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// A table whose columns are as wide as their widest cell; each cell is one line.
pub(crate) fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> =
        rows.iter().map(|row| row.each_ref().map(|cell| one_line(cell))).collect();
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_cannot_steer_the_terminal() {
        assert_eq!(printable("a\r\nb\x1b[2Jc\u{9b}d"), "a\nb\u{fffd}[2Jc\u{fffd}d\n");
        assert_eq!(one_line("a\nb\x1bc"), "a b c");
        let rows = [["a\nb", "c"], ["longer", "d"]].map(|row| row.map(str::to_owned));
        assert_eq!(aligned(&rows), "a b     c\nlonger  d\n");
    }
}
