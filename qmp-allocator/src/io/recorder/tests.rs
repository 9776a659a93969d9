use super::*;
use crate::io::recording::{RecordingError, Torn, is_recording, read};
use crate::logic::policy::Words;
use crate::logic::rate::{Count, Sample, Trust};
use crate::logic::recording::Member;
use crate::logic::recording::gather::{Cut, Gatherer};
use crate::logic::recording::tests::head;
use proptest::prelude::*;

const BIG: u64 = 100_000_000;

fn config(folder: &Path, max_bytes: u64) -> RecorderConfig {
    RecorderConfig { folder: folder.to_owned(), max_bytes }
}

fn files(folder: &Path, max_bytes: u64) -> Files {
    Files::new(config(folder, max_bytes), head(0), open_new)
}

fn vm() -> Entry {
    let member = Member { pool: "default".into(), words: Words::default() };
    Entry::Vm("web".parse().unwrap(), member)
}

fn samples(seconds: std::ops::Range<u64>) -> Vec<Entry> {
    let sample = |second| {
        let pv = Some(Count { epoch: 1, packets: second * 1_000_000, trust: Trust::Host });
        let at = Duration::from_secs(second);
        Entry::Sample("web".parse().unwrap(), Sample { at, pv, vf: None })
    };
    seconds.map(sample).collect()
}

/// How many samples were read, and what was torn.
fn count(path: &Path) -> Result<(u64, Vec<Torn>), RecordingError> {
    let cut =
        Cut { interval: None, rate_time_constant: Duration::ZERO, vfs: None, link_mbps: 10_000 };
    let mut gatherer = Gatherer::new(cut);
    let torn = read(path, &mut gatherer)?;
    Ok((gatherer.samples(), torn))
}

fn only_file(folder: &Path) -> PathBuf {
    let [(file, _)] = found(folder).unwrap().try_into().unwrap();
    file
}

#[test]
fn what_the_thread_was_told_is_in_the_folder_when_it_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("sub/recording");
    let mut recorder = Recorder::start(config(&dir, BIG), head(0)).unwrap();
    recorder.add(vm());
    samples(0..10_000).into_iter().for_each(|entry| recorder.add(entry));
    drop(recorder);
    let (read, torn) = count(&dir).unwrap();
    // Less only if the disk had stood still meanwhile.
    assert!(read > 0 && torn.is_empty(), "{read} {torn:?}");
    assert!(is_recording(&only_file(&dir)).unwrap());
}

#[test]
fn the_oldest_files_go_and_the_bound_is_never_exceeded() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = files(folder.path(), 10_000);
    files.write(&[vm()]).unwrap();
    for round in 0..200 {
        files.write(&samples(round * 50..(round + 1) * 50)).unwrap();
        let bytes: u64 = found(folder.path()).unwrap().iter().map(|(_, bytes)| bytes).sum();
        assert!(bytes <= 10_000, "{bytes} in round {round}");
        assert_eq!(bytes, files.kept.iter().map(|(_, bytes)| bytes).sum::<u64>());
    }
    let kept = found(folder.path()).unwrap();
    assert!((4..=9).contains(&kept.len()), "{kept:?}");
    let (read, torn) = count(folder.path()).unwrap();
    assert!((500..5_000).contains(&read) && torn.is_empty(), "{read}");
}

#[test]
fn another_daemon_begins_another_file_and_leaves_strangers_alone() {
    let folder = tempfile::tempdir().unwrap();
    let stranger = folder.path().join("000000000009.txt");
    std::fs::write(&stranger, [0; 9_000]).unwrap();
    for from in [0, 100] {
        let mut files = files(folder.path(), 4_000);
        files.write(&[vm()]).unwrap();
        files.write(&samples(from..from + 100)).unwrap();
    }
    let names: Vec<_> = found(folder.path()).unwrap();
    assert!(names[0].0.ends_with("000000000001.flexvfrec"), "{names:?}");
    assert_eq!((names.len(), count(folder.path()).unwrap().0), (2, 200));
    assert!(stranger.exists());
}

#[test]
fn a_block_beyond_the_bound_is_refused_and_the_next_one_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = files(folder.path(), 2_000);
    files.write(&[vm()]).unwrap();
    let error = files.write(&samples(0..1_000)).unwrap_err().to_string();
    assert!(error.ends_with("more than `max_mb` allows"), "{error}");
    files.write(&samples(1_000..1_010)).unwrap();
    assert_eq!(count(folder.path()).unwrap(), (10, vec![]));
}

#[test]
fn a_full_disk_costs_what_was_to_be_written_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = files(folder.path(), BIG);
    let full: fn(&Path) -> io::Result<File> = |_| OpenOptions::new().write(true).open("/dev/full");
    files.open_new = full;
    let status = Mutex::new(RecorderStatus::default());
    for _ in 0..3 {
        let told = files.write(&[vm()]);
        assert!(told.is_err());
        tell(&status, told, &files, 1);
    }
    let told = locked(&status).clone();
    assert_eq!((told.lost, told.entries, told.bytes), (3, 0, 0));
    let problem = told.problem.unwrap();
    assert!(problem.contains("No space left") && problem.contains("make room"), "{problem}");
    files.open_new = open_new;
    let told = files.write(&samples(0..5));
    tell(&status, told, &files, 5);
    assert_eq!((locked(&status).problem.clone(), count(folder.path()).unwrap().0), (None, 5));
}

#[test]
fn after_a_failed_write_no_sample_goes_on_from_what_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = files(folder.path(), BIG);
    files.write(&[vm()]).unwrap();
    files.write(&samples(0..5)).unwrap();
    // A descriptor that takes nothing stands for the disk.
    let file = files.kept[0].0.clone();
    files.open = Some(File::open(&file).unwrap());
    assert!(files.write(&samples(5..10)).is_err());
    files.write(&samples(10..15)).unwrap();
    assert_eq!(found(folder.path()).unwrap().len(), 2);
    assert_eq!(count(folder.path()).unwrap(), (10, vec![]));
}

#[test]
fn while_the_disk_does_not_keep_up_registrations_wait_and_samples_are_lost() {
    let (to_thread, waiting) = sync_channel(1);
    let (_, ended) = sync_channel(1);
    let status = Arc::default();
    let mut recorder = Recorder { batch: Vec::new(), to_thread: Some(to_thread), status, ended };
    for _ in 0..3 {
        recorder.add(vm());
        samples(0..7).into_iter().for_each(|entry| recorder.add(entry));
        recorder.flush();
    }
    assert_eq!((recorder.status().lost, recorder.batch.len()), (14, 2));
    assert_eq!(waiting.recv().unwrap().len(), 8);
    recorder.flush();
    assert_eq!(waiting.recv().unwrap(), [vm(), vm()]);
}

fn recorded(folder: &Path) -> (PathBuf, Vec<u8>) {
    let mut files = files(folder, BIG);
    files.write(&[vm()]).unwrap();
    files.write(&samples(0..20)).unwrap();
    files.write(&samples(20..40)).unwrap();
    let file = only_file(folder);
    let bytes = std::fs::read(&file).unwrap();
    (file, bytes)
}

#[test]
fn a_torn_tail_costs_the_last_block_wherever_it_is_torn() {
    let folder = tempfile::tempdir().unwrap();
    let (file, bytes) = recorded(folder.path());
    for length in 0..bytes.len() {
        std::fs::write(&file, &bytes[..length]).unwrap();
        let (read, torn) = count(&file).unwrap();
        assert!([0, 20].contains(&read), "{read} at {length}");
        let lost: u64 = torn.iter().map(|torn| torn.bytes).sum();
        assert!(lost <= length as u64);
    }
    // Zeroes after a loss of power.
    let zeroes = [&bytes[..], &[0; 5000]].concat();
    std::fs::write(&file, zeroes).unwrap();
    assert_eq!(count(&file).unwrap(), (40, vec![Torn { file: file.clone(), bytes: 5000 }]));
}

#[test]
fn what_is_no_recording_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let (file, bytes) = recorded(folder.path());
    let error = |content: &[u8]| {
        std::fs::write(&file, content).unwrap();
        count(&file).unwrap_err().to_string()
    };
    let mut other = bytes.clone();
    other[7] = 2;
    assert!(
        error(&other)
            .ends_with("not a recording of this version of flexvf (its first bytes are others)")
    );
    assert!(is_recording(&file).unwrap());
    assert!(error(b"time_s,vm,pps\n").contains("not a recording"));
    assert!(!is_recording(&file).unwrap());
    let mut other = bytes.clone();
    other[20] ^= 1;
    let told = error(&other);
    assert!(
        told.contains("garbled at byte 8: a wrong checksum")
            && told.ends_with("leave the file out"),
        "{told}"
    );
    let mut other = bytes;
    other[8..12].copy_from_slice(&[0xff; 4]);
    assert!(error(&other).contains("garbled at byte 8: no block begins here"));
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    assert!(count(&empty).unwrap_err().to_string().contains("no recording in this folder"));
    assert!(matches!(count(&folder.path().join("none")), Err(RecordingError::Io { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_file_breaks_the_reader(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let (file, mut bytes) = recorded(folder.path());
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        std::fs::write(&file, bytes).unwrap();
        // A checksum stands before all of it: what is read is what was written.
        if let Ok((read, _)) = count(&file) {
            prop_assert!([0, 20, 40].contains(&read));
        }
    }
}
