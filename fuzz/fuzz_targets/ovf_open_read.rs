#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let format = goldsmith::format_named("xenserver-ovf").expect("there is one");
    goldsmith_testkit::fuzz::open_read(format, data);
});
