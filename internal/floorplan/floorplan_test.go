// Package floorplan keeps the architecture: which package may import which,
// each rule with its reason.
package floorplan

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "credentialbroker"

// floors: a package imports from lower floors only.
var floors = map[string]int{
	"internal/secret": 0, "internal/access": 0, "internal/clock": 0, "internal/outbound": 0, "internal/durable": 0, "internal/redact": 0, "internal/policy": 0, "api/client": 0,
	"internal/audit": 1, "internal/gate": 1, "providers": 1, "internal/keys": 1, "internal/intake": 1, "internal/scan": 1, "internal/platform": 1,
	"providers/vault": 2, "providers/aws": 2, "providers/azure": 2, "providers/gcp": 2, "providers/file": 2, "providers/systemd": 2,
	"providers/exec": 2, "providers/providertest": 2, "internal/fake": 2, "internal/leak": 2, "oidc": 2,
	"rotation": 3, "internal/broker": 4, "internal/response": 5, "internal/files": 5, "internal/credential": 5, "internal/proxy": 5, "api": 5, "configs": 6, "cmd/brokerd": 7,
}

// Packages that stand beside the floors: programs and tests.
var beside = []string{"providers/gcp/gcptest", "cmd/broker", "bench", "integration", "internal/floorplan", "configs/gen", "configs/systemd", "packaging"}

type pkg struct {
	ImportPath, Dir string
	Imports         []string
	Deps            []string
}

func list(t *testing.T, args ...string) map[string]pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Dir,Imports,Deps"}, args...)...)
	cmd.Dir = filepath.Join("..", "..")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pkgs := map[string]pkg{}
	for d := json.NewDecoder(out); ; {
		var p pkg
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		pkgs[strings.TrimPrefix(p.ImportPath, module+"/")] = p
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return pkgs
}

func TestFloorPlan(t *testing.T) {
	pkgs := list(t, "./...")
	if len(pkgs) < len(floors) {
		t.Fatalf("only %d packages found", len(pkgs))
	}
	for name, p := range pkgs {
		floor, ok := floors[name]
		if !ok {
			if !isBeside(name) {
				t.Errorf("%s has no floor: give it one in this test, with its purpose in CONTRIBUTING.md", name)
			}
			continue
		}
		for _, imp := range p.Imports {
			imp, ours := strings.CutPrefix(imp, module+"/")
			if !ours {
				continue
			}
			if below, known := floors[imp]; !known || below >= floor {
				t.Errorf("%s (floor %d) imports %s (floor %d): calls flow down, values flow up", name, floor, imp, below)
			}
		}
	}
}

func isBeside(name string) bool {
	for _, b := range beside {
		if name == b || strings.HasPrefix(name, b+"/") {
			return true
		}
	}
	return false
}

func TestForbiddenImports(t *testing.T) {
	pkgs := list(t, "-deps", "./cmd/broker", "./providers", "./oidc", "./internal/broker", "./internal/fake", "./api/client")
	for _, rule := range []struct{ who, what, why string }{
		{"cmd/broker", "github.com/hashicorp/vault/api", "the command line starts in milliseconds: whatever needs an SDK runs brokerd"},
		{"cmd/broker", "github.com/aws/", "the command line links no cloud SDK"},
		{"cmd/broker", "github.com/Azure/", "the command line links no cloud SDK"},
		{"cmd/broker", "cloud.google.com/", "the command line links no cloud SDK"},
		{"cmd/broker", "google.golang.org/grpc", "the command line links no cloud SDK"},
		{"cmd/broker", "github.com/prometheus/", "it costs start-up time that every token call would pay"},
		{"cmd/broker", "github.com/smallstep/", "mails are the daemon's"},
		{"cmd/broker", "github.com/ProtonMail/", "mails are the daemon's"},
		{"cmd/broker", module + "/configs", "configurations belong to the daemon"},
		{"providers", "github.com/hashicorp/", "an SDK lives in its adapter"},
		{"providers", "github.com/aws/", "an SDK lives in its adapter"},
		{"providers", "github.com/Azure/", "an SDK lives in its adapter"},
		{"providers", "cloud.google.com/", "an SDK lives in its adapter"},
		{"internal/broker", module + "/providers/vault", "the broker knows providers by their interface"},
		{"internal/fake", "testing", "the demonstration ships it"},
		{"api/client", "github.com/", "others copy it: standard library only"},
		{"api/client", "golang.org/", "others copy it: standard library only"},
	} {
		p, ok := pkgs[rule.who]
		if !ok {
			t.Errorf("no package %s", rule.who)
		}
		for _, d := range p.Deps {
			if strings.HasPrefix(d, rule.what) {
				t.Errorf("%s depends on %s: %s", rule.who, d, rule.why)
			}
		}
	}
}
