//! A DNS server that knows one name.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

const NO_ERROR: u8 = 0;
const NO_SUCH_NAME: u8 = 3;
const TYPE_A: [u8; 2] = [0, 1];

/// Answers for this name with this address, as long as the process lives.
pub fn serve(at: SocketAddr, name: &'static str, address: Ipv4Addr) {
    let socket = UdpSocket::bind(at).unwrap();
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((bytes, from)) = socket.recv_from(&mut query) {
            if let Some(answer) = answer(&query[..bytes], name, address) {
                let _ = socket.send_to(&answer, from);
            }
        }
    });
}

/// RFC 1035, section 4: a header, the question as it came, and perhaps one record.
fn answer(query: &[u8], name: &str, address: Ipv4Addr) -> Option<Vec<u8>> {
    let id = query.get(..2)?;
    let mut asked = String::new();
    let mut at = 12;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        asked.push_str(std::str::from_utf8(query.get(at..at + length)?).ok()?);
        asked.push('.');
        at += length;
    }
    let question = query.get(12..at + 4)?;
    let known = asked.trim_end_matches('.').eq_ignore_ascii_case(name);
    let has_record = known && query.get(at..at + 2)? == TYPE_A;
    let code = if known { NO_ERROR } else { NO_SUCH_NAME };
    // An answer with authority; recursion was desired, and is available.
    let mut answer = [id, &[0x85, 0x80 | code, 0, 1, 0, u8::from(has_record), 0, 0, 0, 0]].concat();
    answer.extend_from_slice(question);
    if has_record {
        // The name at offset 12, type A, class IN, 5 s, 4 bytes.
        answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
        answer.extend_from_slice(&address.octets());
    }
    Some(answer)
}
