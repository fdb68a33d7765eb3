//! What the dashboard shows, as data for a picture.

use cairn_prometheus_tests::dashboard;
use cairn_prometheus_tests::server::Server;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long.
const LENGTH: Duration = Duration::from_secs(120);

/// Waits for so long, asks all queries for that time, and writes the answers.
pub async fn record(board: &Value, server: &Server, file: &Path) {
    tokio::time::sleep(LENGTH).await;
    let end = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let (begin, end) = ((end - LENGTH.as_secs()).to_string(), end.to_string());
    let mut answers = Vec::new();
    for query in dashboard::queries(board) {
        let expression = dashboard::filled(&query.expression, board);
        let parameters =
            [("query", expression.as_str()), ("start", &begin), ("end", &end), ("step", "2")];
        let data = server.api("query_range", &parameters).await.unwrap();
        answers
            .push(json!({ "panel": query.of, "expr": query.expression, "result": data["result"] }));
    }
    std::fs::write(file, Value::from(answers).to_string()).unwrap();
}
