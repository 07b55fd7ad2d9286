package access

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Names turns the names of an allow list into numbers. An error says what to
// do about the name.
type Names interface {
	User(name string) (uint32, error)
	Group(name string) (uint32, error)
}

// SystemNames asks the machine: a number is taken as it is; then /etc/passwd
// and /etc/group, then getent, which knows directories (LDAP, SSSD) that a
// static program cannot reach. Answers are kept, so make a new one for each
// reading of the configuration. It spends at most 5 s in all on a name service
// that does not answer.
func SystemNames() Names { return &systemNames{known: map[string]answer{}, wait: 5 * time.Second} }

type systemNames struct {
	mu    sync.Mutex
	known map[string]answer
	wait  time.Duration // for one answer of getent
	dead  bool          // getent did not give one in that time
}

type answer struct {
	id  uint32
	err error
}

func (s *systemNames) User(name string) (uint32, error) {
	return s.find("passwd", "user", name, func() (string, error) {
		u, err := user.Lookup(name)
		if err != nil {
			return "", err
		}
		return u.Uid, nil
	})
}

func (s *systemNames) Group(name string) (uint32, error) {
	return s.find("group", "group", name, func() (string, error) {
		g, err := user.LookupGroup(name)
		if err != nil {
			return "", err
		}
		return g.Gid, nil
	})
}

func (s *systemNames) find(database, kind, name string, local func() (string, error)) (uint32, error) {
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		if uint32(n) == nobody {
			return 0, fmt.Errorf("%s is no %s: it is the number that stands for none", name, kind)
		}
		return uint32(n), nil
	}
	if name == "" || strings.HasPrefix(name, "-") || strings.ContainsAny(name, ": \t\n\x00") {
		return 0, fmt.Errorf("%q is no %s name", name, kind)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := database + ":" + name
	if a, ok := s.known[key]; ok {
		return a.id, a.err
	}
	var a answer
	if id, err := local(); err == nil {
		a.id, a.err = parseID(id)
	} else {
		a.id, a.err = s.getent(database, kind, name)
	}
	s.known[key] = a
	return a.id, a.err
}

// getent reads "name:password:number:…".
func (s *systemNames) getent(database, kind, name string) (uint32, error) {
	unknown := fmt.Errorf("this machine has no %s %q: create it, or correct the name (a number works too)", kind, name)
	silent := fmt.Errorf("%s %q is not in /etc/%s, and the system's name service does not answer: try again when it does, or write the number", kind, name, database)
	if s.dead {
		return 0, silent
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.wait)
	defer cancel()
	cmd := exec.CommandContext(ctx, "getent", database, name)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		s.dead = true
		return 0, silent
	case errors.As(err, &exit) && exit.ExitCode() == 2, errors.Is(err, exec.ErrNotFound): // 2: no such key
		return 0, unknown
	case err != nil:
		return 0, silent
	}
	f := bytes.SplitN(bytes.TrimSpace(out), []byte(":"), 4)
	if len(f) < 3 {
		return 0, unknown
	}
	return parseID(string(f[2]))
}

func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || uint32(n) == nobody {
		return 0, fmt.Errorf("the system gives %q as its number, which is none", s)
	}
	return uint32(n), nil
}
