package files

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inNamespace runs f in a process with a mount namespace, and unless it is
// root a user namespace, of its own: with a tmpfs of 64 KiB for the root, of
// which f gets a directory, and one for the test's other files. Nothing of it
// outlives the process.
func inNamespace(t *testing.T, f func(t *testing.T, dir string)) {
	t.Helper()
	const variable = "FILES_TEST_NAMESPACE"
	if where := os.Getenv(variable); where != "" {
		if err := enter(where); err != nil {
			t.Fatal(err)
		}
		f(t, "/files")
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.count=1")
	cmd.Env = []string{variable + "=" + t.TempDir(), "TMPDIR=/tmp", "PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWUSER, Pdeathsig: syscall.SIGKILL,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "PASS") {
		t.Fatalf("%v\n%s", err, out)
	}
}

func enter(where string) error {
	for _, step := range []func() error{
		func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
		func() error { return unix.Mount("tmpfs", where, "tmpfs", 0, "size=64k,mode=755") },
		func() error { return os.Mkdir(where+"/tmp", 0o700) },
		func() error { return unix.Mount("tmpfs", where+"/tmp", "tmpfs", 0, "size=64m,mode=700") },
		func() error { return unix.Chroot(where) },
		func() error { return os.Chdir("/") },
		func() error { return os.Mkdir("/files", 0o700) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
