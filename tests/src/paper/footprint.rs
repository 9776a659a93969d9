//! Section 6.2: processor time and memory of FlexVF's programs, at rest and while a guest is switched.

use std::fmt::Write;

use crate::scenario::footprint::Footprint;

/// The table's data.
pub fn csv(footprints: &[Footprint]) -> String {
    let mut out = "program,during,lasted_s,switches,cpu_ms,cpu_percent,resident_mib\n".to_owned();
    for footprint in footprints {
        let Footprint { program, during, lasted_s, switches, cpu_ms, resident_mib } = footprint;
        let (during, percent) = (during.replace(',', " and"), percent(footprint));
        let _ = writeln!(
            out,
            "{program},{during},{lasted_s:.1},{switches},{cpu_ms:.2},{percent:.3},{resident_mib:.2}"
        );
    }
    out
}

/// A section of the report.
pub fn html(footprints: &[Footprint]) -> String {
    let mut rows = String::new();
    for footprint in footprints {
        let Footprint { program, during, lasted_s, switches, cpu_ms, resident_mib } = footprint;
        let percent = percent(footprint);
        let _ = writeln!(
            rows,
            "<tr><td>{program}<td>{during}<td>{switches}<td>{lasted_s:.0} s<td>{cpu_ms:.0} ms<td>{percent:.2} %<td>{resident_mib:.1} MiB"
        );
    }
    format!(
        r#"<h2>Section 6.2: processor time and memory <span class="tag">measured on emulated hardware</span></h2>
<p>Of each program while one guest had probes both ways and a TCP transfer: at rest, switched, and with its VF taken
away. <code>flexvf</code> and <code>vhost-net-pv</code> run on the host; <code>qga-extension</code> in the guest, on an
emulated processor where there is no KVM. Percent are of one processor; what vhost-net-pv takes is the traffic's.</p>
<table><tr><th>program<th>during<th>switches<th>lasted<th>processor<th>of one<th>memory
{rows}</table>
<p><b>Beside the paper.</b> The paper counts under 1 % of a processor and 10 MB for monitoring; of a thousand VMs
<code>scripts/bench allocator</code> tells.</p>
"#
    )
}

fn percent(footprint: &Footprint) -> f64 {
    footprint.cpu_ms / 10.0 / footprint.lasted_s.max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_are_of_one_processor() {
        let footprint = Footprint {
            program: "flexvf".into(),
            during: "5 to the VF, 5 back".into(),
            lasted_s: 20.0,
            switches: 10,
            cpu_ms: 100.0,
            resident_mib: 5.25,
        };
        let line = "flexvf,5 to the VF and 5 back,20.0,10,100.00,0.500,5.25\n";
        assert!(csv(std::slice::from_ref(&footprint)).ends_with(line));
        assert!(html(&[footprint]).contains("<td>0.50 %<td>5.2 MiB"));
    }
}
