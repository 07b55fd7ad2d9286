package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"credentialbroker/configs"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

// script makes a program; $D in it is its directory.
func script(t *testing.T, text string) (name, dir string) {
	t.Helper()
	dir = shortDir(t)
	name = filepath.Join(dir, "page")
	text = "#!/bin/sh\n" + strings.ReplaceAll(text, "$D", dir) + "\n"
	if err := os.WriteFile(name, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return name, dir
}

func read(t *testing.T, elem ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestAlarmCommand: it gets what is documented, and nothing else.
func TestAlarmCommand(t *testing.T) {
	t.Setenv("CANARY", "x")
	name, dir := script(t, `cat > $D/stdin
cat /proc/$$/cmdline > $D/argv
cat /proc/$$/environ > $D/environ
links=$(readlink /proc/$$/cwd /proc/$$/fd/1 /proc/$$/fd/2)
echo "$links" > $D/links
echo never seen; echo never seen >&2`)
	if err := runAlarm(t.Context(), configs.Alarm{Command: []string{name, "a b", "$HOME"}}, "", []byte("line\n")); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"stdin":   "line\n",
		"argv":    "/bin/sh\x00" + name + "\x00a b\x00$HOME\x00",
		"environ": "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\x00LANG=C.UTF-8\x00",
		"links":   "/\n/dev/null\n/dev/null\n",
	} {
		if got := read(t, dir, file); got != want {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
}

// TestAlarmCommandFails: how it ended is said, and never what it printed.
func TestAlarmCommandFails(t *testing.T) {
	run := func(name string) string {
		err := runAlarm(t.Context(), configs.Alarm{Command: []string{name}}, "", []byte("line\n"))
		if err == nil {
			return ""
		}
		if strings.Contains(err.Error(), "canary") {
			t.Errorf("%v", err)
		}
		return strings.TrimPrefix(err.Error(), name)
	}
	for text, want := range map[string]string{
		"echo canary; echo canary >&2; exit 3": " ended with exit code 3: run it by hand to see why",
		"kill -9 $$":                           " was ended by a signal: signal: killed",
		"exit 0":                               "", // without reading
	} {
		name, _ := script(t, text)
		if got := run(name); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
	for mode, want := range map[os.FileMode]string{0o720: "its group or others may write it", 0o702: "its group or others may write it", 0o600: "no program"} {
		name, dir := script(t, "touch $D/ran")
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
		if got := run(name); !strings.Contains(got, want) {
			t.Errorf("%o: %q, want %q", mode, got, want)
		}
		if _, err := os.Stat(filepath.Join(dir, "ran")); err == nil {
			t.Errorf("%o: it was run", mode)
		}
	}
	if got := run(filepath.Join(t.TempDir(), "none")); !strings.Contains(got, "no such file") {
		t.Error(got)
	}
	if got := run(t.TempDir()); !strings.Contains(got, "no program") {
		t.Error(got)
	}
}

// gone says whether the process that wrote its number to the file has ended.
func gone(t *testing.T, elem ...string) bool {
	t.Helper()
	stat, err := os.ReadFile("/proc/" + strings.TrimSpace(read(t, elem...)) + "/stat")
	return err != nil || regexp.MustCompile(`\) [ZX] `).Match(stat)
}

// TestAlarmCommandIsEnded with all that it has started, at its timeout and
// when the daemon ends, whether it listens to SIGTERM or not.
func TestAlarmCommandIsEnded(t *testing.T) {
	// The traps are set before the child, whose file says that all is ready.
	const listens, deaf = "trap 'echo x > $D/term; exit 0' TERM\n", "trap '' TERM\n"
	const child = `sh -c 'trap "" TERM; echo $$ > $D/child.new; mv $D/child.new $D/child; while :; do sleep 60; done' &
`
	for name, c := range map[string]struct {
		text string
		stop bool // the daemon ends
		deaf bool
	}{
		"timeout":               {text: listens + child + `wait; while :; do :; done`},
		"timeout, deaf":         {text: deaf + child + `while :; do wait; done`, deaf: true},
		"the daemon ends":       {text: listens + child + `wait; while :; do :; done`, stop: true},
		"the daemon ends, deaf": {text: deaf + child + `while :; do wait; done`, stop: true, deaf: true},
	} {
		t.Run(name, func(t *testing.T) {
			name, dir := script(t, c.text) // before another forks, and holds it open for a moment
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			a := configs.Alarm{Command: []string{name}, Timeout: clock.Duration(time.Second)}
			if c.stop {
				a.Timeout = clock.Duration(time.Minute)
				go func() {
					for ctx.Err() == nil {
						if _, err := os.Stat(filepath.Join(dir, "child")); err == nil {
							break
						}
						<-time.After(10 * time.Millisecond)
					}
					cancel()
				}()
			}
			started := time.Now()
			err := runAlarm(ctx, a, "", []byte("line\n"))
			if err == nil || !strings.Contains(err.Error(), "in time") {
				t.Errorf("%v", err)
			}
			if took := time.Since(started); c.deaf && took < alarmGrace {
				t.Errorf("it took %v", took)
			}
			if _, err := os.Stat(filepath.Join(dir, "term")); (err == nil) == c.deaf {
				t.Errorf("SIGTERM: %v", err)
			}
			for end := time.Now().Add(10 * time.Second); !gone(t, dir, "child"); <-time.After(10 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("the grandchild lives")
				}
			}
		})
	}
}

// TestAlarmsOfTheDaemon: an issuer refuses a secret, and the daemon that ships
// runs the command; once more after it was killed between run and record, and
// not again after that. A reload brings another command.
func TestAlarmsOfTheDaemon(t *testing.T) {
	s := newSite(t)
	first, dir := script(t, `cat >> $D/lines
[ -e $D/killed ] || { touch $D/killed; kill -9 $PPID; }`)
	lines := func(dir string) []string {
		b, _ := os.ReadFile(filepath.Join(dir, "lines"))
		return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	}
	hook := func(command string) string { return fmt.Sprintf("alarm: { command: [%s], timeout: 20s }\n", command) }
	s.write("broker.yaml", s.config()+hook(first))
	s.start()
	s.until("the place is kept", func() bool { _, err := os.Stat(s.path("state", "alarm.json")); return err == nil })
	s.issuer.Set(fake.Fault{Kind: fake.InvalidClient})
	if code, body := s.do("broker.sock", "GET", "/v1/clients/vdab/token", ""); code != 502 {
		t.Fatalf("%d %s", code, body)
	}
	_ = s.cmd.Wait() // the command kills it
	s.start()
	s.until("it is run once more", func() bool { return len(lines(dir)) >= 2 })
	s.until("that is recorded", func() bool { return strings.Contains(read(t, s.path("state", "alarm.json")), "token.refused") })
	var m alarmMessage
	if err := json.Unmarshal([]byte(lines(dir)[0]), &m); err != nil || lines(dir)[0] != lines(dir)[1] || m.Client != "vdab" || m.Code != "invalid_client" || m.Alarm == "" || m.Host == "" {
		t.Errorf("%v, %q", err, lines(dir))
	}
	if _, text := s.do("admin.sock", "GET", "/metrics", ""); !strings.Contains(text, `credential_broker_alarm_runs_total{result="ok",via="command"} 1`) ||
		!strings.Contains(text, `credential_broker_alarm_runs_total{result="failed",via="webhook"} 0`) {
		t.Error(regexp.MustCompile(`.*alarm_runs.*`).FindAllString(text, -1))
	}

	second, other := script(t, `cat >> $D/lines`)
	s.write("broker.yaml", s.config()+hook(second))
	if code, body := s.do("admin.sock", "POST", "/v1/reload", ""); code != 200 || !strings.Contains(body, "alarm.command") {
		t.Fatalf("%d %s", code, body)
	}
	ref := providers.Ref{Path: "vdab"}
	b, err := s.store.(providers.Provider).Fetch(t.Context(), ref, "")
	if err != nil {
		t.Fatal(err)
	}
	b.Wipe()
	if _, err := s.store.Put(t.Context(), ref, map[string]secret.Secret{"client_id": secret.FromString("half")}, b.Version); err != nil {
		t.Fatal(err)
	}
	if code, body := s.do("admin.sock", "POST", "/v1/clients/vdab/rotate", ""); !strings.Contains(body, "lacks") {
		t.Fatalf("%d %s", code, body)
	}
	s.until("the other command is run", func() bool { return len(lines(other)) >= 1 && lines(other)[0] != "" })
	s.stop(syscall.SIGTERM)
	if n := len(lines(dir)); n != 2 {
		t.Errorf("the first command was run %d times", n)
	}
}

// TestAlarmPage does what docs/monitoring.md says of the command: the
// configuration is taken, the script works, the line is of that form.
func TestAlarmPage(t *testing.T) {
	_, section, _ := strings.Cut(page(t), "\n## A command for each alarm\n")
	section, _, _ = strings.Cut(section, "\n## ")
	block := func(language string) string {
		m := regexp.MustCompile("(?s)```" + language + "\n(.*?)```").FindStringSubmatch(section)
		if m == nil {
			t.Fatalf("no block of %s", language)
		}
		return m[1]
	}
	dir := shortDir(t)
	put := func(name, text string, mode os.FileMode) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return file
	}
	c, err := configs.Load(put("broker.yaml", block("yaml"), 0o600), configs.Options{})
	if err != nil || len(c.Alarm.Command) != 1 || c.Alarm.Timeout.D() != alarmTimeout {
		t.Errorf("%v, %+v", err, c)
	}
	inline := regexp.MustCompile("`(command: \\[.*?\\])`").FindStringSubmatch(section)
	c2, err := configs.Load(put("broker.yaml", "alarm: { "+inline[1]+" }\n", 0o600), configs.Options{})
	if err != nil || len(c2.Alarm.Command) != 2 || c2.Alarm.Command[0] != c.Alarm.Command[0] {
		t.Fatalf("%v, %+v", err, c2)
	}

	// Every key is there, and none that is not.
	line := block("json")
	var m alarmMessage
	d := json.NewDecoder(strings.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		t.Fatal(err)
	}
	if back, err := json.Marshal(m); err != nil || string(back)+"\n" != line {
		t.Errorf("%v, %s", err, back)
	}
	if v := reflect.ValueOf(m); v.NumField() != strings.Count(line, `":`)-len(m.Detail) {
		t.Errorf("%d keys: %s", v.NumField(), line)
	}

	// logger and curl note how they are called.
	for _, tool := range []string{"logger", "curl"} {
		put(tool, "#!/bin/sh\nprintf '[%s]' \"${0##*/}\" \"$@\" >> "+dir+"/calls\ncat >> "+dir+"/calls\n", 0o700)
	}
	program := put("broker-alarm", block("sh"), 0o700)
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "[logger][-p][daemon.crit][-t][broker-alarm]" + line},
		{c2.Alarm.Command[1:], "[logger][-p][daemon.crit][-t][broker-alarm]" + line +
			"[curl][-sSf][-m][20][-H][Content-Type: application/json][--data-binary][@-][-o][/dev/null][https://pager.corp.example/alarm]" + line},
	} {
		cmd := exec.Command(program, c.args...)
		cmd.Env, cmd.Stdin = []string{"PATH=" + dir + ":/usr/bin:/bin"}, strings.NewReader(line)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%v: %v\n%s", c.args, err, out)
		}
		if got := read(t, dir, "calls"); got != c.want {
			t.Errorf("%v:\n%s\nwant\n%s", c.args, got, c.want)
		}
		_ = os.Remove(filepath.Join(dir, "calls"))
	}
	// What cannot be told is a failure, so that it is tried again.
	for tool, args := range map[string][]string{"curl": c2.Alarm.Command[1:], "logger": nil} {
		put(tool, "#!/bin/sh\nexit 22\n", 0o700)
		cmd := exec.Command(program, args...)
		cmd.Env, cmd.Stdin = []string{"PATH=" + dir + ":/usr/bin:/bin"}, strings.NewReader(line)
		if err := cmd.Run(); err == nil {
			t.Errorf("the script succeeds when %s fails", tool)
		}
		put(tool, "#!/bin/sh\n", 0o700)
	}
}
