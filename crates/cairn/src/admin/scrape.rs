//! The page of metrics, as the scraper likes it best: which format, and whether compressed.

use super::server::{Page, encoded, page, text};
use cairn_telemetry::Telemetry;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::request::Parts;
use http::{HeaderMap, HeaderName, StatusCode, header};

/// All metrics. Prometheus' text format, or OpenMetrics where it is liked at least as much; compressed where gzip is
/// taken.
pub fn metrics(telemetry: &Telemetry, request: &Parts) -> Page {
    let openmetrics = prefers_openmetrics(&request.headers);
    let content_type = Telemetry::content_type(openmetrics);
    if !takes_gzip(&request.headers) {
        return page(StatusCode::OK, content_type, telemetry.render(openmetrics));
    }
    // Only what is compressed is kept: the text can be twenty times as long.
    let mut body = GzEncoder::new(Vec::new(), Compression::fast());
    match telemetry.write(openmetrics, &mut body).and_then(|()| body.finish()) {
        Ok(body) => encoded(content_type, "gzip", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// RFC 9110 §12.5.1: by the quality of the type; nothing said means text.
fn prefers_openmetrics(headers: &HeaderMap) -> bool {
    let mut openmetrics = 0;
    let mut plain = 0;
    for (range, quality) in listed(headers, header::ACCEPT) {
        match range.as_str() {
            "application/openmetrics-text" => openmetrics = openmetrics.max(quality),
            "text/plain" => plain = plain.max(quality),
            _ => {}
        }
    }
    openmetrics > 0 && openmetrics >= plain
}

/// RFC 9110 §12.5.3.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let mut any = 0;
    for (coding, quality) in listed(headers, header::ACCEPT_ENCODING) {
        match coding.as_str() {
            "gzip" | "x-gzip" => return quality > 0,
            "*" => any = quality,
            _ => {}
        }
    }
    any > 0
}

/// The entries of a list in lower case without their parameters, and their qualities in thousandths.
fn listed(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = (String, u32)> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).filter_map(|entry| {
        let mut parts = entry.split(';').map(str::trim);
        let what = parts.next()?.to_ascii_lowercase();
        let quality = parts.find_map(|part| {
            let (name, value) = part.split_once('=')?;
            name.trim()
                .eq_ignore_ascii_case("q")
                .then(|| value.trim().parse::<f32>().unwrap_or(0.0))
        });
        // Between 0 and 1000.
        Some((what, (quality.unwrap_or(1.0).clamp(0.0, 1.0) * 1000.0) as u32))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn with(name: HeaderName, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name.clone(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn the_format_that_is_liked_best() {
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,\
                            application/openmetrics-text;version=0.0.1;q=0.75,\
                            text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                            text/plain;version=1.0.0;escaping=allow-utf-8;q=0.6,*/*;q=0.2";
        for (values, openmetrics) in [
            (&[][..], false),
            (&["*/*"], false),
            (&["text/plain"], false),
            (&["application/openmetrics-text"], true),
            (&["Application/OpenMetrics-Text; Version=1.0.0"], true),
            (&["application/openmetrics-text;q=0"], false),
            (&["text/plain", "application/openmetrics-text"], true),
            (&["text/plain;q=0.5, application/openmetrics-text;q=0.4"], false),
            (&["text/plain;q=0.5, application/openmetrics-text; q=0.6"], true),
            (&["application/openmetrics-text;q=nonsense"], false),
            (&[prometheus_2], true),
            (&[prometheus_3], false),
        ] {
            assert_eq!(
                prefers_openmetrics(&with(header::ACCEPT, values)),
                openmetrics,
                "{values:?}"
            );
        }
    }

    #[test]
    fn gzip_where_it_is_taken() {
        for (values, gzip) in [
            (&[][..], false),
            (&["gzip"], true),
            (&["deflate, gzip;q=1.0, *;q=0.5"], true),
            (&["gzip;q=0"], false),
            (&["*"], true),
            (&["*;q=0"], false),
            (&["gzip;q=0, *"], false),
            (&["identity", "x-gzip"], true),
        ] {
            assert_eq!(takes_gzip(&with(header::ACCEPT_ENCODING, values)), gzip, "{values:?}");
        }
    }
}
