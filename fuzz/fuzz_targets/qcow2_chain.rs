#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let fix_up = goldsmith_testkit::build::qcow2::fix_up;
    goldsmith_testkit::fuzz::chain(&goldsmith_qcow2::QCOW2, data, fix_up);
});
