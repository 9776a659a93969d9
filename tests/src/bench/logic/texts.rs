//! Numbers out of other programs' words and the kernel's files.

/// Packets a second from each of testpmd's periodic reports, in their order: received and sent.
///
/// A report that is still being written is not taken.
pub fn testpmd_rates(log: &str) -> Vec<(u64, u64)> {
    let number = |line: &str, word: &str| {
        let (_, rest) = line.split_once(word)?;
        rest.split_whitespace().next()?.parse().ok()
    };
    let mut received = None;
    let mut rates = Vec::new();
    for line in log.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        received = number(line, "Rx-pps:").or(received);
        if let Some(sent) = number(line, "Tx-pps:") {
            rates.extend(received.take().map(|received| (received, sent)));
        }
    }
    rates
}

/// A number of `/proc/PID/status`: KiB for sizes.
pub fn status_number(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Processors in a list like `0,2-4`.
pub fn cpu_list(text: &str) -> Vec<usize> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse()) {
            cpus.extend(first..=last);
        }
    }
    cpus
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "\
  ######################## NIC statistics for port 0  ########################
  RX-packets: 5          RX-missed: 0          RX-bytes:  0
  TX-packets: 7486400    TX-errors: 0          TX-bytes:  479129600

  Throughput (since last show)
  Rx-pps:           12          Rx-bps:            0
  Tx-pps:      7486012          Tx-bps:   3832838144
  ############################################################################
";

    #[test]
    fn each_report_of_testpmd_is_taken_once_and_whole() {
        assert_eq!(testpmd_rates(&REPORT.repeat(2)), [(12, 7_486_012); 2]);
        let cut = REPORT.find("Tx-bps").unwrap();
        assert!(testpmd_rates(&REPORT[..cut]).is_empty());
        assert!(testpmd_rates("").is_empty());
    }

    #[test]
    fn a_status_number_is_found_by_its_whole_key() {
        let status = "RssAnon:\t 1200 kB\nRss:\t 7 kB\nvoluntary_ctxt_switches:\t31\n";
        assert_eq!(status_number(status, "Rss"), Some(7));
        assert_eq!(status_number(status, "voluntary_ctxt_switches"), Some(31));
        assert_eq!(status_number(status, "nothing"), None);
    }

    #[test]
    fn a_list_of_processors_has_ranges() {
        assert_eq!(cpu_list("0,2-4\n"), [0, 2, 3, 4]);
        assert!(cpu_list("\n").is_empty());
    }
}
