package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"credentialbroker/configs"
	"credentialbroker/internal/files"
)

// shm is a directory on a tmpfs.
func shm(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "broker-files-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// withFiles is the configuration with files of the client vdab, as written.
func (s *site) withFiles(yaml string) {
	s.t.Helper()
	s.write("broker.yaml", strings.Replace(s.config(), "    secret: {", yaml+"    secret: {", 1))
}

func (s *site) fileStates() (states []string) {
	for _, f := range s.clientStatus().Files {
		states = append(states, filepath.Base(f.Path)+" "+f.State)
	}
	return states
}

// TestFiles: the daemon that ships writes files, says so wherever somebody may
// look, changes them with a reload, keeps them over a kill and a restart, and
// removes them when it stops unless somebody else does.
func TestFiles(t *testing.T) {
	s, dir := newSite(t), shm(t)
	one, two := "    files:\n      - { path: "+dir+"/vdab/token }\n", "      - { path: "+dir+"/headers, content: headers, mode: '0440' }\n"
	s.withFiles(one)
	s.start("RUNTIME_DIRECTORY=" + dir)
	s.until("the file is there", func() bool { _, err := os.Stat(dir + "/vdab/token"); return err == nil })
	token := read(t, dir, "vdab/token")
	if code, body := s.do("broker.sock", "GET", "/v1/clients/vdab/token", ""); code != 200 || !strings.Contains(body, `"access_token":"`+token+`"`) {
		t.Errorf("the file holds another token: %d", code)
	}
	if code, body := s.do("admin.sock", "POST", "/v1/whois", `{"access_token":"`+token+`"}`); code != 200 || !strings.Contains(body, `"place":"file `+dir+`/vdab/token"`) || strings.Contains(body, `"unit":"file`) {
		t.Errorf("who has it: %d %s", code, body)
	}
	s.withFiles(one + two)
	if code, body := s.do("admin.sock", "POST", "/v1/reload", ""); code != 200 || !strings.Contains(body, "files: "+dir+"/headers: headers (text), for the daemon and its group") || !strings.Contains(body, "(wider)") {
		t.Errorf("reload: %d %s", code, body)
	}
	s.until("both are there", func() bool { return strings.Join(s.fileStates(), ",") == "headers ok,token ok" })
	if _, text := s.do("admin.sock", "GET", "/metrics", ""); !strings.Contains(text, `credential_broker_files{client="vdab",state="ok"} 2`) {
		t.Error("no metric")
	}
	s.stop(syscall.SIGKILL)
	s.withFiles(one)
	s.start("RUNTIME_DIRECTORY=" + dir)
	s.until("one is gone", func() bool { _, err := os.Stat(dir + "/headers"); return os.IsNotExist(err) })
	s.until("one is written anew", func() bool { now := read(t, dir, "vdab/token"); return now != "" && now != token })
	s.stop(syscall.SIGTERM)
	if read(t, dir, "vdab/token") == "" {
		t.Error("a restart would take it away")
	}
	s.start()
	s.until("the file is there", func() bool { return strings.Join(s.fileStates(), ",") == "token ok" })
	s.stop(syscall.SIGTERM)
	if _, err := os.Stat(dir + "/vdab/token"); !os.IsNotExist(err) {
		t.Errorf("nobody else removes it, and it stays: %v", err)
	}
	name, err := daemonProgram()
	if err != nil {
		t.Fatal(err)
	}
	s.withFiles(one + "      - { path: /run/x/y, group: gone }\n")
	for flag, wants := range map[string][]string{
		"--json=false": {"file of vdab: " + dir + "/vdab/token: token (text), for the daemon\nfile of vdab: /run/x/y: token (text), for the daemon and everybody in the group gone\n  group: gone needs a daemon", "/run/x/y: group: this machine has no group"},
		"--json":       {`"needs":"group: gone needs`, `"path":"/run/x/y"`},
	} {
		out, err := exec.Command(name, "check", flag, "--config", s.path("broker.yaml")).CombinedOutput()
		for _, want := range wants {
			if err != nil || !strings.Contains(string(out), want) {
				t.Errorf("%v\n%s\nlacks %s", err, out, want)
			}
		}
	}
}

// TestFilesPage does what docs/applications.md says: the configuration is
// taken, its names are those of the tables, and the call works with the file
// that the daemon has written.
func TestFilesPage(t *testing.T) {
	page := read(t, "../..", "docs/applications.md")
	_, section, _ := strings.Cut(page, "\n## Files\n")
	section, _, _ = strings.Cut(section, "\n## ")
	blocks := map[string][]string{}
	for _, m := range regexp.MustCompile("(?s)```([a-z]+)\n(.*?)```").FindAllStringSubmatch(section, -1) {
		blocks[m[1]] = append(blocks[m[1]], m[2])
	}
	if len(blocks["yaml"]) != 1 || len(blocks["sh"]) != 2 {
		t.Fatalf("%v", blocks)
	}
	s, dir := newSite(t), shm(t)
	here := strings.NewReplacer("/run/credential-broker/files", dir, "vdab-token", "0")
	if os.Getuid() != 0 {
		here = strings.NewReplacer("/run/credential-broker/files", dir, ", group: vdab-token", "")
	}
	s.withFiles("    " + strings.ReplaceAll(strings.TrimSpace(blocks["yaml"][0]), "\n", "\n    ") + "\n")
	c, err := configs.Load(s.path("broker.yaml"), configs.Options{})
	if err != nil || len(c.Clients["vdab"].Files) != 2 || !strings.Contains(section, "`"+string(c.Clients["vdab"].Files[0].Content)+"`") {
		t.Fatalf("%v", err)
	}
	s.write("broker.yaml", here.Replace(read(t, s.dir, "broker.yaml")))
	s.start()
	s.until("the files are there", func() bool { return strings.Join(s.fileStates(), ",") == "headers ok,token.env ok" })

	got := http.Header{}
	api := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header }))
	defer api.Close()
	call := strings.Replace(here.Replace(blocks["sh"][0]), "https://api.example", api.URL, 1)
	if out, err := exec.Command("sh", "-ec", call).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.HasPrefix(got.Get("Authorization"), "Bearer ey") || got.Get("X-IBM-Client-Id") != s.client.APIKey {
		t.Errorf("the API gets %d headers", len(got))
	}
	env := exec.Command("sh", "-ec", `. "$0"; printf %s "$ACCESS_TOKEN"`, dir+"/vdab/token.env")
	if out, err := env.Output(); err != nil || "Bearer "+string(out) != got.Get("Authorization") {
		t.Errorf("a shell reads another token: %v", err)
	}

	// The group's commands speak of what is there.
	unit := read(t, "../..", "configs/systemd/drop-ins/files.conf")
	for _, word := range []string{"vdab-token", "/usr/share/credential-broker/drop-ins/files.conf"} {
		if !strings.Contains(blocks["sh"][1], word) {
			t.Errorf("the commands do not speak of %s", word)
		}
	}
	if !strings.Contains(unit, "SupplementaryGroups=vdab-token\n") {
		t.Error("the drop-in has another group than the page")
	}
	for _, state := range files.States() {
		if !strings.Contains(section, "`"+string(state)+"`") {
			t.Errorf("the page does not name %s", state)
		}
	}
}
