#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    goldsmith_testkit::fuzz::write_read(&goldsmith_qcow2::QCOW2, data);
});
