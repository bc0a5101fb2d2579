//! deploy/iam: the roles of the CloudFormation template as plain policies.

use std::path::Path;

use crate::support::servers::installed;

#[test]
fn the_plain_policies_match_the_template() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/deploy/policies.py");
    let compared = installed("moto", "python").arg(script).output().unwrap();
    assert!(compared.status.success(), "{}", String::from_utf8_lossy(&compared.stderr));
}
