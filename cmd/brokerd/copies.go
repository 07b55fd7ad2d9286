package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/configs"
	"credentialbroker/internal/broker"
	"credentialbroker/rotation"
)

// Rules of this file: the directory of the sealed copies (brown_out) is the
// daemon's own. What it removes there has the name of a copy, or of one that
// was being written when a process died; nothing else is touched. No trouble
// with it keeps the daemon from its work.

const (
	copySuffix   = ".age"  // of the store's files
	unfinished   = ".new-" // how the store calls what is not in place yet
	writingTakes = time.Minute
)

// tidyCopies makes the directory of the copies, and takes those away whose
// clients are gone or are copied no more.
func tidyCopies(c *configs.Config) error {
	dir := c.Copies()
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	wanted := map[string]bool{}
	for name, cl := range c.Clients {
		wanted[rotation.KeptName(name)+copySuffix] = c.Copied(cl)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	list, err := fs.ReadDir(root.FS(), ".")
	for _, f := range list {
		name := f.Name()
		left := strings.HasPrefix(name, unfinished) && older(f, writingTakes)
		if f.Type().IsRegular() && (left || isCopy(name) && !wanted[name]) {
			err = errors.Join(err, root.Remove(name))
		}
	}
	return err
}

func isCopy(name string) bool {
	client, ok := strings.CutSuffix(name, rotation.KeptName("")+copySuffix)
	return ok && configs.IsName(client)
}

func older(f fs.DirEntry, d time.Duration) bool {
	info, err := f.Info()
	return err == nil && time.Since(info.ModTime()) > d
}

// copies tidies up, and says what could not be done.
func (s *server) copies(c *configs.Config) {
	if err := tidyCopies(c); err != nil {
		s.log.Warn("the directory of the copies for a start in an outage is not in order", "error", err)
	}
}

// copiesLeft says what stays on the disk when copies are kept no more, or
// elsewhere.
func copiesLeft(old, now *configs.Config) []client.Change {
	dir := old.Copies()
	if dir == "" || dir == now.Copies() {
		return nil
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*"+rotation.KeptName("")+copySuffix)); err != nil || len(left) == 0 {
		return nil
	}
	return []client.Change{{What: "the sealed copies of before stay in " + dir + " until somebody removes them: rm " + dir + "/*" + rotation.KeptName("") + copySuffix}}
}

// tellCopy writes to the journal when a client begins to live by its copy and
// when that is over, and why there is no copy: once each.
func (s *server) tellCopy(said map[string]string, c broker.ClientStatus) {
	k := c.Credential
	serves, failed := "", ""
	if !k.Degraded.IsZero() {
		serves = k.Degraded.Format(time.RFC3339)
	} else if k.KeepErr != nil {
		failed = k.KeepErr.Error()
	}
	switch before := said["copy of "+c.Name]; {
	case serves != "" && before != serves:
		s.log.Warn("the secrets manager is down: its sealed copy serves a client", "client", c.Name, "of", k.Confirmed, "until", serves)
	case serves == "" && before != "":
		s.log.Info("the secrets manager answers again: no copy serves any more", "client", c.Name)
	}
	if failed != "" && said["no copy of "+c.Name] != failed {
		s.log.Warn("there is no copy of a client's secret for a start in an outage", "client", c.Name, "error", failed)
	}
	said["copy of "+c.Name], said["no copy of "+c.Name] = serves, failed
}
