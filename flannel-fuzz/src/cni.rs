use flannel_cni::{
    SubnetEnv, fuzzing,
    protocol::{AddResult, Arguments, Config, Environment, Version},
};

/// What a container runtime says: a plugin's configuration, of which a result reads as it was written in each version, or else
/// the variables of the environment, one for each line.
pub fn cni(bytes: &[u8]) {
    if let Ok(config) = Config::parse(bytes) {
        let _ = config.valid_attachments();
        for version in Version::ALL {
            let Ok(Some(previous)) = config.previous() else { break };
            let Ok(written) = previous.to_value(version) else { continue };
            let read = AddResult::from_json(&written, version).expect("it was just written");
            assert_eq!(read.to_value(version).as_ref(), Ok(&written));
        }
    }
    let text = String::from_utf8_lossy(bytes);
    if let Some((arguments, config)) = text.split_once('\n')
        && let Ok(config) = Config::parse(config.as_bytes())
    {
        fuzzing::read_by_all(&config, arguments);
    }
    let _ = SubnetEnv::parse(&text, "subnet.env");
    let _ = text.parse::<Arguments>();
    let variable = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.map(str::to_owned)
    };
    if let Ok(environment) = Environment::read(variable) {
        // It becomes the name of a file.
        assert!(!environment.container_id.contains('/') && !environment.interface.contains('/'));
    }
}
