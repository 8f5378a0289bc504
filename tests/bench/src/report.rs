//! The table: one line for each thing measured, judged by the goal it belongs to.

use std::fmt::Write as _;

use serde::Serialize;

use crate::samples::{Samples, Summary};

/// What a goal asks of the judged value.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
    Between(f64, f64),
}

/// What is judged.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Judged {
    OursByRival,
    OursByLimit,
    RivalByLimit,
    Ours,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    Met,
    /// The median misses the target, the quartiles reach it.
    Near,
    Missed,
    /// Measured, but no goal says what it must be.
    Shown,
    NotMeasured,
}

/// One line.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) id: &'static str,
    pub(crate) what: String,
    unit: &'static str,
    limit: Option<Summary>,
    rival: Option<Summary>,
    ours: Option<Summary>,
    judged: Judged,
    ratio: Option<Summary>,
    target: Option<Target>,
    pub(crate) verdict: Verdict,
    note: Option<String>,
}

/// Who was measured; absent is `None`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sides {
    pub(crate) limit: Option<Samples>,
    pub(crate) rival: Option<Samples>,
    pub(crate) ours: Option<Samples>,
}

impl Sides {
    pub(crate) fn ours(ours: Samples) -> Self {
        Self { ours: Some(ours), ..Self::default() }
    }

    pub(crate) fn rival(mut self, rival: Samples) -> Self {
        self.rival = Some(rival);
        self
    }

    pub(crate) fn limit(mut self, limit: Samples) -> Self {
        self.limit = Some(limit);
        self
    }

    fn judged(&self, judged: Judged) -> Option<Samples> {
        let by = |a: &Option<Samples>, b: &Option<Samples>| Some(a.as_ref()?.by(b.as_ref()?));
        match judged {
            Judged::OursByRival => by(&self.ours, &self.rival),
            Judged::OursByLimit => by(&self.ours, &self.limit),
            Judged::RivalByLimit => by(&self.rival, &self.limit),
            Judged::Ours => self.ours.clone(),
        }
    }
}

impl Row {
    fn new(
        id: &'static str,
        what: &str,
        unit: &'static str,
        sides: &Sides,
        judged: Judged,
        target: Option<Target>,
    ) -> Self {
        let summary = |s: &Option<Samples>| s.as_ref().and_then(Samples::summary);
        let ratio = sides.judged(judged).as_ref().and_then(Samples::summary);
        let verdict = match (ratio, target) {
            (Some(value), Some(target)) => target.verdict(value),
            (None, None) if sides.ours.is_none() => Verdict::NotMeasured,
            (_, None) => Verdict::Shown,
            (None, Some(_)) => Verdict::NotMeasured,
        };
        Self {
            id,
            what: what.to_owned(),
            unit,
            limit: summary(&sides.limit),
            rival: summary(&sides.rival),
            ours: summary(&sides.ours),
            judged,
            ratio,
            target,
            verdict,
            note: None,
        }
    }

    /// Judged by ours / rival.
    pub(crate) fn against_rival(
        id: &'static str,
        what: &str,
        unit: &'static str,
        sides: &Sides,
        target: Option<Target>,
    ) -> Self {
        Self::new(id, what, unit, sides, Judged::OursByRival, target)
    }

    /// Judged by ours / limit.
    pub(crate) fn against_limit(
        id: &'static str,
        what: &str,
        unit: &'static str,
        sides: &Sides,
        target: Option<Target>,
    ) -> Self {
        Self::new(id, what, unit, sides, Judged::OursByLimit, target)
    }

    /// Judged by rival / limit: whether the rival is a fair picture at all.
    pub(crate) fn of_the_rival(
        id: &'static str,
        what: &str,
        unit: &'static str,
        sides: &Sides,
        target: Target,
    ) -> Self {
        Self::new(id, what, unit, sides, Judged::RivalByLimit, Some(target))
    }

    /// Judged by our value alone.
    pub(crate) fn alone(
        id: &'static str,
        what: &str,
        unit: &'static str,
        sides: &Sides,
        target: Option<Target>,
    ) -> Self {
        Self::new(id, what, unit, sides, Judged::Ours, target)
    }

    /// A line that says why there are no numbers.
    pub(crate) fn not_measured(id: &'static str, what: &str, why: impl Into<String>) -> Self {
        let row = Self::new(id, what, "", &Sides::default(), Judged::Ours, None);
        Self { note: Some(why.into()), ..row }
    }

    pub(crate) fn note(self, note: impl Into<String>) -> Self {
        self.notes(Some(note.into()))
    }

    /// A note, if there is one.
    pub(crate) fn notes(self, note: Option<String>) -> Self {
        Self { note, ..self }
    }

    fn cells(&self) -> [String; 11] {
        let number = |s: Option<Summary>| s.map_or("-".to_owned(), |s| short(s.median));
        let sign = match self.judged {
            Judged::OursByRival => "ours/rival ",
            Judged::OursByLimit => "ours/limit ",
            Judged::RivalByLimit => "rival/limit ",
            Judged::Ours => "ours ",
        };
        let (value, n, iqr) = self.ratio.map_or_else(Default::default, |r| {
            let iqr = format!("{}..{}", short(r.q1), short(r.q3));
            (format!("{sign}{}", short(r.median)), r.n.to_string(), iqr)
        });
        [
            self.id.to_owned(),
            self.what.clone(),
            self.unit.to_owned(),
            number(self.limit),
            number(self.rival),
            number(self.ours),
            value,
            n,
            iqr,
            self.target.map_or("-".to_owned(), Target::text),
            self.verdict.text().to_owned(),
        ]
    }
}

impl Target {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
            Self::Between(least, most) => (least..=most).contains(&value),
        }
    }

    fn verdict(self, value: Summary) -> Verdict {
        match (self.holds(value.median), self.holds(value.q1) || self.holds(value.q3)) {
            (true, _) => Verdict::Met,
            (false, true) => Verdict::Near,
            (false, false) => Verdict::Missed,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(most) => format!("<= {}", short(most)),
            Self::AtLeast(least) => format!(">= {}", short(least)),
            Self::Between(least, most) => format!("{}..{}", short(least), short(most)),
        }
    }
}

impl Verdict {
    fn text(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Near => "near (IQR reaches it)",
            Self::Missed => "MISSED",
            Self::Shown => "shown",
            Self::NotMeasured => "not measured",
        }
    }
}

/// Three digits that matter.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        v if v >= 0.1 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

const HEAD: [&str; 11] =
    ["goal", "what", "unit", "limit", "rival", "ours", "judged", "n", "IQR", "target", "verdict"];

/// All lines under each other, notes below.
pub(crate) fn table(rows: &[Row]) -> String {
    let lines: Vec<[String; 11]> =
        std::iter::once(HEAD.map(str::to_owned)).chain(rows.iter().map(Row::cells)).collect();
    let mut text = String::new();
    for line in &lines {
        for (column, cell) in line.iter().enumerate() {
            let width = lines.iter().map(|l| l[column].chars().count()).max().unwrap_or_default();
            let gap = if column + 1 == line.len() { "" } else { "  " };
            let _ = write!(text, "{cell:<width$}{gap}");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    for row in rows {
        if let Some(note) = &row.note {
            let _ = writeln!(text, "{} {}: {note}", row.id, row.what);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        values.iter().copied().collect()
    }

    #[test]
    fn a_goal_is_missed_only_if_the_quartiles_miss_it_too() {
        let sides = Sides::ours(samples(&[9.0, 10.0, 11.0]));
        let verdict = |t| Row::alone("P0", "x", "ms", &sides, Some(t)).verdict;
        assert_eq!(verdict(Target::AtMost(10.0)), Verdict::Met);
        assert_eq!(verdict(Target::AtMost(9.8)), Verdict::Near);
        assert_eq!(verdict(Target::AtMost(9.0)), Verdict::Missed);
        assert_eq!(verdict(Target::AtLeast(12.0)), Verdict::Missed);
    }

    #[test]
    fn a_side_that_is_missing_is_no_verdict() {
        let row =
            |target| Row::against_rival("P0", "x", "ms", &Sides::ours(samples(&[1.0])), target);
        assert_eq!(row(Some(Target::AtMost(1.0))).verdict, Verdict::NotMeasured);
        assert_eq!(row(None).verdict, Verdict::Shown);
    }

    #[test]
    fn the_table_has_a_line_for_each_row_and_its_note() {
        let sides = Sides::ours(samples(&[1.0])).rival(samples(&[4.0]));
        let row = Row::against_rival("P0", "x", "ms", &sides, Some(Target::AtMost(0.3)));
        let text = table(&[row.note("why")]);
        assert!(text.contains("ours/rival 0.250") && text.contains("met"), "{text}");
        assert!(text.ends_with("P0 x: why\n"), "{text}");
    }
}
