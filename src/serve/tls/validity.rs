//! Until when a certificate is good: the one thing in it that somebody has to act on in time.

use std::time::SystemTime;

/// Tags of DER (X.690) that are met on the way (RFC 5280, section 4.1).
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The last second in which a certificate is good, since the epoch; `None` if it is not written as one.
pub(super) fn end(certificate: &[u8]) -> Option<u64> {
    let (outer, _) = content(certificate, SEQUENCE)?;
    let (mut signed, _) = content(outer, SEQUENCE)?;
    if let Some((_, after)) = content(signed, VERSION) {
        signed = after;
    }
    // The serial number, the algorithm of the signature, and who signed it.
    for _ in 0..3 {
        (_, _, signed) = element(signed)?;
    }
    let (validity, _) = content(signed, SEQUENCE)?;
    let (_, _, after_start) = element(validity)?;
    let (tag, time, _) = element(after_start)?;
    moment(tag, std::str::from_utf8(time).ok()?)
}

/// The first element's tag and content, and what comes after it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, length], rest) = der.split_first_chunk()?;
    let (length, rest) = if length < 0x80 {
        (usize::from(length), rest)
    } else {
        // So many bytes of length come.
        let (bytes, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
        if bytes.len() > 4 {
            return None;
        }
        (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// The content of the first element, if it has this tag, and what comes after it.
fn content(der: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    element(der).filter(|(tag, ..)| *tag == wanted).map(|(_, content, rest)| (content, rest))
}

/// The moment that `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ` says.
fn moment(tag: u8, text: &str) -> Option<u64> {
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = text.split_at_checked(2)?;
            // RFC 5280, section 4.1.2.5.1.
            let century = if year < "50" { "20" } else { "19" };
            (format!("{century}{year}"), rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = text.split_at_checked(4)?;
            (year.to_owned(), rest)
        }
        _ => return None,
    };
    let digits = rest.strip_suffix('Z').filter(|digits| digits.len() == 10)?;
    let part = |from: usize| digits.get(from..from + 2);
    let (month, day, hour, minute, second) = (part(0)?, part(2)?, part(4)?, part(6)?, part(8)?);
    let written = format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z");
    let moment = humantime::parse_rfc3339(&written).ok()?;
    Some(moment.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_read_in_either_way_of_writing_a_time() {
        for (year, seconds) in [(2027, 1_798_761_600), (2049, 2_493_072_000), (2050, 2_524_608_000)] {
            let mut params = CertificateParams::new(["weir.test".into()]).unwrap();
            params.not_after = date_time_ymd(year, 1, 1);
            let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            assert_eq!(end(certificate.der()), Some(seconds), "{year}");
        }
        assert_eq!(moment(GENERALIZED_TIME, "99991231235959Z"), Some(253_402_300_799));
        assert_eq!(moment(UTC_TIME, "991231235959Z"), Some(946_684_799), "of the century before");
    }

    #[test]
    fn what_is_no_certificate_has_no_end_wherever_it_breaks_off() {
        let params = CertificateParams::new(["weir.test".into()]).unwrap();
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let der = certificate.der();
        for length in 0..der.len() {
            assert_eq!(end(der.get(..length).unwrap()), None, "{length} bytes");
        }
        for text in ["", "Z", "2701010000Z", "270101000000+0100", "271301000000Z", "27ä10100000Z"] {
            assert_eq!(moment(UTC_TIME, text), None, "{text}");
        }
    }
}
