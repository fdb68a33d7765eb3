//! A file of alerts, as far as it matters here: by lines, as it is written, with each expression in a block.

/// One alert.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Alert {
    /// Its name.
    pub name: String,
    /// PromQL.
    pub expression: String,
    /// `warning` or `critical`.
    pub severity: String,
    /// Labels that its texts name.
    pub labels: Vec<String>,
    /// Texts that it has: `summary`, `description`, `runbook`.
    pub texts: Vec<String>,
}

/// All of them, in their order.
pub fn read(text: &str) -> Vec<Alert> {
    let mut alerts: Vec<Alert> = Vec::new();
    let mut block = None;
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let line = line.trim();
        if let Some(name) = line.strip_prefix("- alert: ") {
            alerts.push(Alert { name: name.to_owned(), ..Alert::default() });
        }
        let Some(alert) = alerts.last_mut() else { continue };
        if block.is_some_and(|outer| indent > outer) {
            alert.expression.push_str(line);
            alert.expression.push(' ');
            continue;
        }
        block = (line == "expr: |-").then_some(indent);
        if let Some(severity) = line.strip_prefix("severity: ") {
            severity.clone_into(&mut alert.severity);
        }
        for text in ["summary", "description", "runbook"] {
            if line.strip_prefix(text).is_some_and(|rest| rest.starts_with(": ")) {
                alert.texts.push(text.to_owned());
            }
        }
        let named = line.split("$labels.").skip(1);
        let word = |rest: &str| {
            rest.chars().take_while(|next| next.is_alphanumeric() || *next == '_').collect()
        };
        alert.labels.extend(named.map(word));
    }
    alerts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_are_read_by_lines() {
        let text = "groups:\n- name: a\n  rules:\n  - alert: Slow\n    expr: |-\n      a > 1\n        and b\n    for: 5m\n    \
                    labels:\n      severity: warning\n    annotations:\n      summary: Is slow.\n      \
                    description: \"{{ $labels.pod }} of {{ or $labels.a_b $labels.c }}.\"\n";
        let alert = Alert {
            name: "Slow".to_owned(),
            expression: "a > 1 and b ".to_owned(),
            severity: "warning".to_owned(),
            labels: ["pod", "a_b", "c"].map(str::to_owned).to_vec(),
            texts: ["summary", "description"].map(str::to_owned).to_vec(),
        };
        assert_eq!(read(text), [alert]);
    }
}
