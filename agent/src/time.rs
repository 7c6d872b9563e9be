//! Times as files and people write them: RFC 3339, and nothing else. Pure: it knows no clock.

use jiff::Timestamp;

/// A time as people and programs read it (RFC 3339, to the second).
pub fn rfc3339(milliseconds: u64) -> String {
    let seconds = i64::try_from(milliseconds / 1000).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).map_or_else(|_| format!("{milliseconds} ms"), |t| t.to_string())
}

/// Milliseconds since 1970 of a time in RFC 3339; what lies before that is 0.
///
/// # Errors
/// What is wrong with it.
pub fn parse_rfc3339(text: &str) -> Result<u64, String> {
    let time: Timestamp =
        text.parse().map_err(|e| format!("`{text}` isn't a time such as 2026-12-31T18:00:00Z: {e}"))?;
    Ok(u64::try_from(time.as_millisecond()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_written() {
        assert_eq!(parse_rfc3339("1970-01-01T00:00:05Z"), Ok(5000));
        assert_eq!(parse_rfc3339("1970-01-01T01:00:05+01:00"), Ok(5000));
        assert_eq!(rfc3339(5000), "1970-01-01T00:00:05Z");
        for bad in ["tomorrow", "2026-12-31", "2026-12-31T18:00:00"] {
            assert!(parse_rfc3339(bad).expect_err(bad).contains("isn't a time"));
        }
    }
}
