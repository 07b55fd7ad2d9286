package scan

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "init.defaultBranch=main"}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "GIT_CONFIG_NOSYSTEM=1"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// Values that were committed and removed again: loose, packed as a delta, in a
// commit's message, in an archive, unreachable, in a file's name.
func TestGit(t *testing.T) {
	dir := t.TempDir()
	commit := func(message string) {
		git(t, dir, "add", "-A")
		git(t, dir, "commit", "-q", "--allow-empty", "-m", message)
	}
	git(t, dir, "init", "-q")
	text := noise(20000)
	write(t, dir, "conf/app.env", text)
	commit("one")
	delta := slices.Concat(text[:10000], []byte("\nsecret="+client+"\n"), text[10000:])
	write(t, dir, "conf/app.env", delta)
	write(t, dir, "logs.zip", zipOf(t, file{"x", nil}, file{"in.log", []byte("\n\n" + apiKey)}))
	commit("two")
	write(t, dir, "conf/app.env", append(text, "and more"...))
	git(t, dir, "rm", "-q", "logs.zip")
	commit("three")
	git(t, dir, "gc", "-q", "--aggressive", "--prune=now")
	blob := git(t, dir, "hash-object", "-w", write(t, t.TempDir(), "dangling", []byte("x"+token(7))))
	commit("leaked " + token(8))
	write(t, dir, "n-"+client+"-n", []byte("named"))
	write(t, dir, "packed.zip", zipOf(t, file{"again", []byte(token(9))}))
	commit("names")
	git(t, dir, "rm", "-q", "-r", ".")
	commit("clean")

	cfg := config(t, index(t, client, apiKey, token(7), token(8), token(9)), dir)
	cfg.Git = true
	r := run(t, cfg)
	if r.NotRead != 0 {
		t.Errorf("%+v", r.Unread)
	}
	var got []string
	for _, f := range r.Findings {
		if f.Source != SourceGit {
			if !strings.Contains(f.Path, ".git/logs") && !strings.Contains(f.Path, "COMMIT_EDITMSG") {
				t.Errorf("%+v", f)
			}
			continue
		}
		if f.Path != filepath.Join(dir, ".git") || len(f.Object) != 40 {
			t.Errorf("%+v", f)
		}
		got = append(got, fmt.Sprintf("%s %s %d", f.Version, f.Member, f.Line))
		if f.Version == "2" && f.Object != blob {
			t.Errorf("%+v", f)
		}
	}
	slices.Sort(got)
	line := bytes.Count(text[:10000], []byte("\n")) + 2
	for _, want := range []string{
		fmt.Sprintf("0 conf/app.env %d", line), "1 logs.zip!in.log 3", "2  1", "4 packed.zip!again 1",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
	has := func(prefix string) bool {
		return slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, prefix) })
	}
	if !has("3 ") || !has("0  ") { // the commit, and the tree with the name
		t.Errorf("%q", got)
	}
	cfg = config(t, index(t, client), dir)
	if r := run(t, cfg); r.Found != 0 || r.Files < 5 {
		t.Errorf("without git: %+v", r)
	}
}

// The history is that of the repository around a path, too: from a directory or
// a file in it, from another work tree, from a bare one; once.
func TestRepositoryAround(t *testing.T) {
	dir := t.TempDir()
	top := filepath.Join(dir, "top")
	write(t, dir, "top/sub/deep/f", []byte(client))
	git(t, top, "init", "-q")
	git(t, top, "add", "-A")
	git(t, top, "commit", "-q", "-m", "m")
	git(t, top, "rm", "-q", "sub/deep/f")
	write(t, dir, "top/sub/deep/g", nil)
	git(t, top, "commit", "-q", "-m", "m")
	git(t, top, "worktree", "add", "-q", filepath.Join(dir, "linked"))
	write(t, dir, "linked/sub/h", nil)
	git(t, dir, "clone", "-q", "--bare", top, filepath.Join(dir, "bare"))
	write(t, dir, "none/f", nil)
	x := index(t, client)
	for _, c := range []struct {
		paths        []string
		found, repos int
		alone        []string
	}{
		{[]string{"top"}, 1, 1, nil},
		{[]string{"top/sub/deep"}, 1, 1, nil},
		{[]string{"top/sub/deep", "top/sub/deep/g", "top/.git"}, 1, 1, nil},
		{[]string{"top/sub/deep/g", "top/sub"}, 1, 1, nil},
		{[]string{"top/.git/refs"}, 1, 1, nil},
		{[]string{"linked"}, 1, 1, nil},
		{[]string{"linked/sub"}, 1, 1, nil},
		{[]string{"bare"}, 1, 1, nil},
		{[]string{"bare/info"}, 1, 1, nil},
		{[]string{"none", "bare", "none/f"}, 1, 1, []string{"none"}},
		{[]string{"."}, 2, 2, nil},
	} {
		for _, on := range []bool{true, false} {
			var paths []string
			for _, p := range c.paths {
				paths = append(paths, filepath.Join(dir, p))
			}
			cfg := config(t, x, paths...)
			cfg.Git = on
			r := run(t, cfg)
			var alone []string
			for _, a := range r.Alone {
				alone = append(alone, filepath.Base(a))
			}
			want := c.found
			if !on {
				want = 0
			}
			if r.Found != want || r.Repositories != c.repos || !slices.Equal(alone, c.alone) || r.NotRead != 0 {
				t.Errorf("%v, %v: %+v", c.paths, on, r)
			}
		}
	}
}

// A file that says where a repository is leads nobody out of the paths.
func TestLinkedElsewhere(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "other/f", []byte(client))
	git(t, filepath.Join(dir, "other"), "init", "-q")
	git(t, filepath.Join(dir, "other"), "add", "-A")
	git(t, filepath.Join(dir, "other"), "commit", "-q", "-m", "m")
	write(t, dir, "here/tree/.git", []byte("gitdir: "+filepath.Join(dir, "other/.git")+"\n"))
	cfg := config(t, index(t, client), filepath.Join(dir, "here"))
	cfg.Git = true
	r := run(t, cfg)
	if r.Found != 0 || r.NotRead != 1 || !strings.Contains(r.Unread[0].Reason, "repository elsewhere") || len(r.Alone) != 1 {
		t.Errorf("%+v", r)
	}
	cfg.Git = false
	if r := run(t, cfg); r.NotRead != 0 {
		t.Errorf("%+v", r)
	}
}

// A repository's configuration runs nothing.
func TestGitRunsNothing(t *testing.T) {
	dir := t.TempDir()
	git(t, dir, "init", "-q")
	write(t, dir, "f", []byte(client))
	git(t, dir, "add", "-A")
	git(t, dir, "commit", "-q", "-m", "m")
	ran := filepath.Join(t.TempDir(), "ran")
	for _, key := range []string{"core.fsmonitor", "core.pager", "core.sshCommand", "core.alternateRefsCommand", "diff.external", "remote.origin.uploadpack"} {
		git(t, dir, "config", key, "touch "+ran)
	}
	git(t, dir, "config", "remote.origin.promisor", "true")
	git(t, dir, "config", "remote.origin.url", dir)
	git(t, dir, "config", "core.repositoryformatversion", "1")
	git(t, dir, "config", "extensions.partialClone", "origin")
	// A tree without its blob, which a partial clone would fetch.
	o := git(t, dir, "rev-parse", "HEAD~0:f")
	other := write(t, dir, "g", []byte("x"+client))
	git(t, dir, "hash-object", "-w", other)
	if err := os.Remove(filepath.Join(dir, ".git/objects", o[:2], o[2:])); err != nil {
		t.Fatal(err)
	}
	cfg := config(t, index(t, client), dir)
	cfg.Git = true
	r := run(t, cfg)
	if !slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Source == SourceGit }) {
		t.Errorf("%+v", r)
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("the repository's configuration ran a command")
	}
}

// Each defence holds by itself: a git that would read the index runs no command
// of the repository's configuration and no hook; one that lacks an object asks
// nobody for it, whichever of the two means it knows.
func TestGitIsToldToRunNothing(t *testing.T) {
	real, err := exec.LookPath("git")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ran := filepath.Join(t.TempDir(), "ran")
	git(t, dir, "init", "-q")
	write(t, dir, "sub/f", []byte(client))
	git(t, dir, "add", "-A")
	git(t, dir, "commit", "-q", "-m", "m")
	for _, hook := range []string{"post-index-change", "fsmonitor"} {
		if err := os.WriteFile(filepath.Join(dir, ".git/hooks", hook), []byte("#!/bin/sh\ntouch "+ran+".$(basename $0)\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	git(t, dir, "config", "core.fsmonitor", filepath.Join(dir, ".git/hooks/fsmonitor"))
	git(t, dir, "config", "remote.origin.promisor", "true")
	git(t, dir, "config", "remote.origin.url", dir)
	git(t, dir, "config", "remote.origin.uploadpack", "touch "+ran+".uploadpack; false")
	git(t, dir, "config", "core.repositoryformatversion", "1")
	git(t, dir, "config", "extensions.partialClone", "origin")
	tree := git(t, dir, "rev-parse", "HEAD:sub")
	for name, script := range map[string]string{
		// The options that it is given, for a command that refreshes the index.
		"index": `cd "$git/.." && touch sub/f && exec "$real" "$@" --work-tree=. update-index --refresh`,
		"env":   `[ "$GIT_NO_LAZY_FETCH" = 1 ] && [ -z "$LEAK" ] || touch "$ran.env"`,
		"fetch": `unset GIT_NO_LAZY_FETCH; exec "$real" "$@" cat-file -t ` + tree,
	} {
		t.Run(name, func(t *testing.T) {
			if name == "fetch" {
				if err := os.Remove(filepath.Join(dir, ".git/objects", tree[:2], tree[2:])); err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
			}
			bin := t.TempDir()
			// "$@" becomes what stands before git's command.
			text := "#!/bin/sh\nreal='" + real + "'\nran='" + ran + "'\n" + `n=$#
while [ $n -gt 0 ]; do
	a=$1; shift; n=$((n-1))
	case $a in
	cat-file|rev-list) shift $n; break;;
	--git-dir=*) git=${a#--git-dir=};;
	esac
	set -- "$@" "$a"
done
`
			if err := os.WriteFile(filepath.Join(bin, "git"), []byte(text+script+"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
			t.Setenv("LEAK", "x")
			cfg := config(t, index(t, client), dir)
			cfg.Git = true
			run(t, cfg)
			if list, _ := filepath.Glob(ran + ".*"); len(list) > 0 {
				t.Errorf("%q", list)
			}
		})
	}
}

// An object of which only a part is read does not hide the next one.
func TestObjectThatIsNotReadToItsEnd(t *testing.T) {
	damaged := append([]byte("\x1f\x8b\x08\xff"), make([]byte, maxMember+1000)...)
	damaged = append(damaged, fmt.Sprintf("\n%040d blob 9999999\n", 9)...) // what is left looks like an object that swallows the next
	var b bytes.Buffer
	for n, text := range [][]byte{damaged, []byte(client)} {
		fmt.Fprintf(&b, "%040d blob %d\n%s\n", n, len(text), text)
	}
	s, err := New(config(t, index(t, client)))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.worker().objects(t.Context(), spot{source: SourceGit}, newReader(b.Bytes())); err != nil {
		t.Fatal(err)
	}
	if r := s.result(); r.Found != 1 || r.Findings[0].Object != fmt.Sprintf("%040d", 1) {
		t.Errorf("%+v", r)
	}
}

func TestBrokenRepository(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "HEAD", []byte("nonsense"))
	write(t, dir, "objects/x", []byte(client))
	write(t, dir, "refs/x", []byte(client))
	cfg := config(t, index(t, client), dir)
	cfg.Git = true
	r := run(t, cfg)
	if r.NotRead != 1 || !strings.Contains(r.Unread[0].Reason, "git failed") || r.Found != 1 {
		t.Errorf("%+v", r)
	}
}

// exported writes an entry in the Journal Export Format.
func exported(fields ...string) []byte {
	var b bytes.Buffer
	for _, f := range fields {
		name, value, _ := strings.Cut(f, "=")
		if strings.Contains(value, "\n") {
			b.WriteString(name + "\n")
			b.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(value))))
			b.WriteString(value + "\n")
			continue
		}
		b.WriteString(f + "\n")
	}
	b.WriteByte('\n')
	return b.Bytes()
}

// journalctl puts a command of that name first; it prints text.
func journalctl(t *testing.T, text []byte, exit int) {
	t.Helper()
	dir := t.TempDir()
	out := write(t, dir, "out", text)
	script := fmt.Sprintf("#!/bin/sh\n[ \"$*\" = '--no-pager --quiet --output=export' ] || exit 9\n[ -z \"$LEAK\" ] || exit 8\ncat '%s'\nexit %d\n", out, exit)
	if err := os.WriteFile(filepath.Join(dir, "journalctl"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("LEAK", "x")
}

func TestJournal(t *testing.T) {
	text := slices.Concat(
		exported("__CURSOR=s=1", "__REALTIME_TIMESTAMP=1700000000000000", "MESSAGE=started", "_SYSTEMD_UNIT=a.service"),
		exported("__REALTIME_TIMESTAMP=1700000001000000", "MESSAGE=one\ntwo "+client+"\n", "_SYSTEMD_UNIT=php.service", "_SYSTEMD_USER_UNIT=no"),
		exported("__REALTIME_TIMESTAMP=1700000002000000", "MESSAGE="+strings.Repeat("long ", 1<<20)+client, "_SYSTEMD_USER_UNIT=me.service"),
		exported("_SYSTEMD_UNIT=x-"+apiKey+".service", "MESSAGE=x"),
		exported("MESSAGE=last"),
	)
	journalctl(t, text, 0)
	cfg := config(t, index(t, client, apiKey))
	cfg.Journal = true
	r := run(t, cfg)
	var got []string
	for _, f := range r.Findings {
		got = append(got, fmt.Sprint(f.Source, f.Unit, f.Time.Unix(), f.Version, f.InName))
	}
	for _, want := range []string{"journalphp.service17000000010false", "journalme.service17000000020false", "journalx-" + mask + ".service-621355968001false"} {
		if !slices.Contains(got, want) {
			t.Errorf("no %s in %q", want, got)
		}
	}
	if r.NotRead != 1 || r.Inside < int64(len(text))*9/10 || !time.Unix(1700000001, 0).Equal(r.Findings[0].Time) {
		t.Errorf("%+v", r)
	}
}

func TestJournalThatFails(t *testing.T) {
	for name, c := range map[string]struct {
		text []byte
		exit int
		why  string
	}{
		"exit":  {exported("MESSAGE=" + client), 3, "exit status 3"},
		"cut":   {exported("MESSAGE=" + client)[:9+len(client)], 0, ""},
		"size":  {append(exported("MESSAGE="+client), "X\n\xff\xff\xff\xff\xff\xff\xff\xff"...), 0, "not understood"},
		"short": {append(exported("MESSAGE="+client), "X\n\xff\x00"...), 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			journalctl(t, c.text, c.exit)
			cfg := config(t, index(t, client))
			cfg.Journal = true
			r := run(t, cfg)
			if r.Found != 1 || (c.why != "") != (r.NotRead > 0) || !strings.Contains(fmt.Sprint(r.Unread), c.why) {
				t.Errorf("%+v", r)
			}
		})
	}
	t.Setenv("PATH", t.TempDir())
	cfg := config(t, index(t, client))
	cfg.Journal = true
	if r := run(t, cfg); r.NotRead != 1 || !strings.Contains(r.Unread[0].Reason, "is it installed") {
		t.Errorf("%+v", r)
	}
}

func FuzzJournal(f *testing.F) {
	f.Add(exported("MESSAGE="+client, "A=1\n2"))
	x := index(f, client)
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := New(config(t, x))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.worker().entries(t.Context(), spot{}, newReader(data)); err != nil {
			t.Fatal(err)
		}
		if err := s.worker().objects(t.Context(), spot{}, newReader(data)); err != nil {
			t.Fatal(err)
		}
	})
}

func newReader(data []byte) *bufio.Reader { return bufio.NewReaderSize(bytes.NewReader(data), 64) }
