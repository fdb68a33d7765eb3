//! Configured bounds over the data plane's defaults.

use cairn_proxy::Limits;

/// The defaults, with what is configured in their place.
pub fn of(configured: &cairn_xds::Limits) -> Limits {
    let cairn_xds::Limits {
        max_connections,
        handshake_timeout,
        // 200 always: the file source refuses everything else.
        max_concurrent_streams: _,
        initial_stream_window,
        initial_connection_window,
        max_frame_size,
        keepalive_interval,
        keepalive_timeout,
        detection_timeout,
        max_request_headers_kib,
        max_request_headers,
        max_response_headers_kib,
        max_response_headers,
        request_head_timeout,
        http_idle_timeout,
        tcp_idle_timeout,
        max_inner_streams,
        max_requests_in_flight,
        max_replay,
        max_mirrors,
        pool_max_streams,
        pool_max_connections,
        pool_idle_timeout,
        max_idle_per_endpoint,
        max_upstream_streams,
    } = configured.clone();

    let mut limits = Limits::default();
    put(&mut limits.max_connections, max_connections);
    put(&mut limits.max_request_head, max_request_headers_kib.map(bytes));
    put(&mut limits.max_request_headers, max_request_headers.map(count));
    put(&mut limits.max_response_head, max_response_headers_kib.map(bytes));
    put(&mut limits.max_response_headers, max_response_headers.map(count));
    put(&mut limits.request_head_timeout, request_head_timeout);
    put(&mut limits.detect_timeout, detection_timeout);
    put(&mut limits.http_idle_timeout, http_idle_timeout);
    put(&mut limits.tcp_idle_timeout, tcp_idle_timeout);
    put(&mut limits.max_inner_streams, max_inner_streams);
    put(&mut limits.max_requests_in_flight, max_requests_in_flight);
    put(&mut limits.max_replay, max_replay);
    put(&mut limits.max_mirrors, max_mirrors);
    put(&mut limits.max_idle_per_endpoint, max_idle_per_endpoint);
    put(&mut limits.max_upstream_streams, max_upstream_streams.map(count));

    let terminator = &mut limits.terminator;
    put(&mut terminator.handshake_timeout, handshake_timeout);
    put(&mut terminator.initial_stream_window, initial_stream_window);
    put(&mut terminator.initial_connection_window, initial_connection_window);
    put(&mut terminator.max_frame_size, max_frame_size);
    put(&mut terminator.keepalive_interval, keepalive_interval);
    put(&mut terminator.keepalive_timeout, keepalive_timeout);

    let originator = &mut limits.originator;
    put(&mut originator.max_streams_per_connection, pool_max_streams.map(count));
    put(&mut originator.max_connections_per_peer, pool_max_connections.map(count));
    put(&mut originator.idle_timeout, pool_idle_timeout);
    put(&mut originator.max_frame_size, max_frame_size);
    put(&mut originator.keepalive_interval, keepalive_interval);
    put(&mut originator.keepalive_timeout, keepalive_timeout);
    limits
}

fn put<T>(place: &mut T, configured: Option<T>) {
    if let Some(value) = configured {
        *place = value;
    }
}

fn count(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn bytes(kib: u32) -> usize {
    count(kib).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_configured_replaces_the_default_and_nothing_else() {
        let configured = cairn_xds::Limits {
            max_request_headers_kib: Some(8),
            keepalive_interval: Some(Duration::from_secs(3)),
            pool_max_streams: Some(7),
            ..cairn_xds::Limits::default()
        };
        let limits = of(&configured);
        assert_eq!(limits.max_request_head, 8 * 1024);
        assert_eq!(limits.terminator.keepalive_interval, Duration::from_secs(3));
        assert_eq!(limits.originator.keepalive_interval, Duration::from_secs(3));
        assert_eq!(limits.originator.max_streams_per_connection, 7);
        let defaults = Limits::default();
        assert_eq!(limits.max_request_headers, defaults.max_request_headers);
        assert_eq!(limits.terminator.handshake_timeout, defaults.terminator.handshake_timeout);
    }
}
