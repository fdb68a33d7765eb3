//! The table of what was expected and what was seen.

use std::fmt;

/// One line.
#[derive(Debug)]
pub struct Row {
    /// What was tried.
    pub what: &'static str,
    /// What should happen.
    pub expected: String,
    /// What happened.
    pub seen: String,
    /// Whether the two agree.
    pub ok: bool,
}

/// All lines.
#[derive(Debug, Default)]
pub struct Table(pub Vec<Row>);

impl Table {
    /// Everything was as expected.
    pub fn all_ok(&self) -> bool {
        self.0.iter().all(|row| row.ok)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |cell: fn(&Row) -> &str, title: &str| {
            let longest = self.0.iter().map(|row| cell(row).chars().count()).max().unwrap_or(0);
            longest.max(title.len())
        };
        let what = width(|row| row.what, "what");
        let expected = width(|row| &row.expected, "expected");
        let seen = width(|row| &row.seen, "seen");
        writeln!(f, "  {:what$}  {:expected$}  {:seen$}  result", "what", "expected", "seen")?;
        writeln!(f, "  {:-<what$}  {:-<expected$}  {:-<seen$}  ------", "", "", "")?;
        for row in &self.0 {
            let verdict = if row.ok { "ok" } else { "FAILED" };
            writeln!(
                f,
                "  {:what$}  {:expected$}  {:seen$}  {verdict}",
                row.what, row.expected, row.seen
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_a_failure_shows() {
        let row =
            |what, seen: &str, ok| Row { what, expected: "200".into(), seen: seen.into(), ok };
        let table = Table(vec![row("short", "200", true), row("much longer", "503 no", false)]);
        assert!(!table.all_ok());
        let text = table.to_string();
        let columns: Vec<_> = text.lines().skip(2).map(|line| line.find("200")).collect();
        assert_eq!(columns, [Some(15), Some(15)], "{text}");
        assert!(text.ends_with("FAILED\n"));
        assert!(Table::default().all_ok());
    }
}
