//go:build real

package e2e_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"credentialbroker/integration/real"
	"credentialbroker/internal/fake"
)

// setUp is what broker setup --json prints, as far as the test looks at it.
type setUp struct {
	Changed bool
	Policy  struct{ Text string }
	Live    []struct{ Check, Level, Detail string }
	Curl    string
}

// From an empty /etc to the first token, by broker setup alone: its policy is
// what Vault gets, its sealed login what the daemon has, its last line what an
// application runs.
func TestSetup(t *testing.T) {
	real.Row(t, "end to end", "Vault 1.21.4, systemd-creds", "broker setup: policy, sealed login, idempotent, check --live, first curl line")
	m := newMachine(t)
	root := filepath.Join(m.dir, "root")
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	flags := " --json --yes --root " + root + " --manager vault --address https://" + m.vault + " --ca-file " + m.dir + "/ca.pem --role setup" +
		" --client vdab --preset vdab-production --path vdab/prod --set token_endpoint=" + m.site.URL + fake.TokenPath + " --set ca_file=" + m.dir + "/issuer-ca.pem" +
		" --contact it@corp.example --purpose vacancies --allow user=root --leak-by-hand 'the service desk writes'"
	setup := func(more string) (out setUp) {
		t.Helper()
		text, err := m.sh(more + flags + " 2>/dev/null")
		if err != nil || json.Unmarshal([]byte(text), &out) != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		return out
	}
	first := setup("broker setup --dry-run")
	if _, err := os.Stat(filepath.Join(root, "etc", "credential-broker")); err == nil {
		t.Error("a dry run writes")
	}
	m.admin("PUT", "sys/policies/acl/setup", obj{"policy": first.Policy.Text})
	m.admin("POST", "auth/approle/role/setup", obj{"token_policies": "setup", "token_ttl": "20m", "secret_id_ttl": "240h"})
	m.write("role-id", m.admin("GET", "auth/approle/role/setup/role-id", nil)["role_id"].(string)+"\n")
	m.write("secret-id", m.admin("POST", "auth/approle/role/setup/secret-id", obj{})["secret_id"].(string)+"\n")
	const sealing = "cat role-id secret-id | broker setup --credential role-id=- --credential secret-id=-"
	if !setup(sealing).Changed {
		t.Error("nothing is written")
	}
	if again := setup(sealing); again.Changed {
		t.Error("the same answers change something")
	}
	m.mustSh(`grep -rqF -f role-id root/etc && exit 1; grep -rqF -f secret-id root/etc && exit 1; rm -r credentials; mkdir -m 700 credentials
for unit in corp-role-id corp-secret-id; do
	grep -q "^LoadCredentialEncrypted=$unit:/etc/credstore.encrypted/$unit$" root/etc/systemd/system/credential-broker.service.d/setup-corp.conf
	systemd-creds decrypt --name=$unit root/etc/credstore.encrypted/$unit credentials/$unit || exit
done`)
	m.write("broker.yaml", "") // serve takes the one below root
	if err := os.Remove(filepath.Join(m.dir, "broker.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(root, "etc", "credential-broker", "broker.yaml"), filepath.Join(m.dir, "broker.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(root, "etc", "credential-broker", "clients.d"), filepath.Join(m.dir, "clients.d")); err != nil {
		t.Fatal(err)
	}
	m.serve()
	done := setup("broker setup --socket /run/credential-broker/broker.sock")
	if done.Changed {
		t.Error("something is to be changed")
	}
	found := ""
	for _, f := range done.Live {
		found += f.Check + " " + f.Level + ": " + f.Detail + "\n"
	}
	for _, want := range []string{"secret ok:", "issuer ok:", "login warning: the secret-id ends on "} {
		if !strings.Contains(found, want) {
			t.Errorf("no %q:\n%s", want, found)
		}
	}
	if token := m.mustSh(done.Curl); !strings.Contains(token, `"access_token":"`) {
		t.Errorf("%.40s", token)
	}
}
