//! A dashboard of Grafana, as far as queries matter.

use serde_json::Value;

/// One query, and who asks it.
#[derive(Debug, Clone)]
pub struct Query {
    /// Title of the panel, or name of the variable.
    pub of: String,
    /// PromQL, with variables.
    pub expression: String,
    /// Labels that its legend names.
    pub legend: Vec<String>,
}

/// All queries of panels, in rows or not.
pub fn queries(dashboard: &Value) -> Vec<Query> {
    let mut found = Vec::new();
    let mut open: Vec<&Value> = list(&dashboard["panels"]).collect();
    while let Some(panel) = open.pop() {
        open.extend(list(&panel["panels"]));
        for target in list(&panel["targets"]) {
            let text = |name: &str| target[name].as_str().unwrap_or_default();
            found.push(Query {
                of: panel["title"].as_str().unwrap_or_default().to_owned(),
                expression: text("expr").to_owned(),
                legend: placeholders(text("legendFormat")),
            });
        }
    }
    found
}

/// Variables that ask: a selector, and the label whose values are wanted.
pub fn variables(dashboard: &Value) -> Vec<Query> {
    let variables = list(&dashboard["templating"]["list"]);
    variables
        .filter_map(|variable| {
            let query = variable["query"]["query"].as_str()?;
            let inside = query.strip_prefix("label_values(")?.strip_suffix(')')?;
            let (expression, label) = inside.rsplit_once(", ")?;
            Some(Query {
                of: format!("${}", variable["name"].as_str()?),
                expression: expression.to_owned(),
                legend: vec![label.to_owned()],
            })
        })
        .collect()
}

/// What Grafana would send with everything chosen, and windows that fit scrapes twice a second.
pub fn filled(expression: &str, dashboard: &Value) -> String {
    let mut text = expression.replace("$__rate_interval", "10s").replace("$__range", "1m");
    for variable in list(&dashboard["templating"]["list"]) {
        if let Some(name) = variable["name"].as_str() {
            text = text.replace(&format!("${name}"), ".*");
        }
    }
    text
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn placeholders(legend: &str) -> Vec<String> {
    let parts = legend.split("{{").skip(1);
    parts.filter_map(|part| Some(part.split_once("}}")?.0.trim().to_owned())).collect()
}
