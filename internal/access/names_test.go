package access

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestSystemNames(t *testing.T) {
	n := SystemNames()
	for name, want := range map[string]uint32{"root": 0, "0": 0, "4711": 4711, "4294967294": 4294967294} {
		if id, err := n.User(name); err != nil || id != want {
			t.Errorf("user %s: %d, %v", name, id, err)
		}
		if id, err := n.Group(name); err != nil || id != want {
			t.Errorf("group %s: %d, %v", name, id, err)
		}
	}
	for name, msg := range map[string]string{
		"no-such-name-here": "this machine has no user",
		"4294967295":        "stands for none",
		"":                  "is no user name",
		"--help":            "is no user name",
		"a b":               "is no user name",
		"root:x":            "is no user name",
		"a\x00b":            "is no user name",
	} {
		if id, err := n.User(name); err == nil || !strings.Contains(err.Error(), msg) {
			t.Errorf("user %q: %d, %v", name, id, err)
		}
	}
	if _, err := n.Group("no-such-name-here"); err == nil || !strings.Contains(err.Error(), "this machine has no group") {
		t.Error(err)
	}
}

// getent puts a program of that name in the way, which writes its arguments
// down, and returns where.
func getent(t *testing.T, script string) (log string) {
	t.Helper()
	dir := t.TempDir()
	log = filepath.Join(dir, "log")
	must(t, os.WriteFile(filepath.Join(dir, "getent"), []byte("#!/bin/sh\necho \"$@\" >>"+log+"\n"+script+"\n"), 0o755))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return log
}

// A static program cannot read a directory; getent can.
func TestGetent(t *testing.T) {
	log := getent(t, `case "$1 $2" in
	"passwd jan") echo "jan:*:70001:70002:Jan:/home/jan:/bin/sh" ;;
	"group jan") echo "jan:*:70003:" ;;
	"passwd odd") echo "odd:*:-1:1" ;;
	"passwd none") echo "none:*:4294967295:1" ;;
	"passwd short") echo "short" ;;
	"passwd broken") exit 3 ;;
	*) exit 2 ;; esac`)
	n := SystemNames()
	for range 3 {
		if id, err := n.User("jan"); err != nil || id != 70001 {
			t.Errorf("user: %d, %v", id, err)
		}
		if id, err := n.Group("jan"); err != nil || id != 70003 {
			t.Errorf("group: %d, %v", id, err)
		}
	}
	for name, msg := range map[string]string{"odd": `gives "-1"`, "none": `gives "4294967295"`, "short": "this machine has no user", "broken": "does not answer", "piet": "this machine has no user"} {
		if id, err := n.User(name); err == nil || !strings.Contains(err.Error(), msg) {
			t.Errorf("%s: %d, %v", name, id, err)
		}
	}
	asked, err := os.ReadFile(log)
	must(t, err)
	if strings.Count(string(asked), "passwd jan\n") != 1 {
		t.Errorf("answers are not kept:\n%s", asked)
	}
}

// A directory that does not answer holds the daemon up once, not once a name.
func TestGetentHangs(t *testing.T) {
	log := getent(t, "exec sleep 1000")
	n := &systemNames{known: map[string]answer{}, wait: 300 * time.Millisecond}
	for _, name := range []string{"jan", "piet"} {
		if _, err := n.User(name); err == nil || !strings.Contains(err.Error(), "does not answer") {
			t.Error(err)
		}
	}
	if asked, err := os.ReadFile(log); err == nil && strings.Contains(string(asked), "piet") {
		t.Errorf("asked again:\n%s", asked)
	}
	if id, err := n.User("root"); err != nil || id != 0 {
		t.Errorf("a local name: %d, %v", id, err)
	}
}

func TestNoGetent(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := SystemNames().User("jan"); err == nil || !strings.Contains(err.Error(), "this machine has no user") {
		t.Error(err)
	}
}
