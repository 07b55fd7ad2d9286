package main

import (
	"cmp"
	"errors"
	"os"
	"path/filepath"

	"credentialbroker/configs"
)

const (
	program   = "credential-broker"
	configDir = "/etc/" + program
	runDir    = "/run/" + program
	stateDir  = "/var/lib/" + program
)

// paths are where the daemon finds and puts things: in the system's places for
// root and under systemd, else in the user's own (XDG Base Directory).
type paths struct{ config, consumer, admin, state string }

// system says whether this is the machine's broker rather than a user's.
func system() bool {
	return os.Geteuid() == 0 || os.Getenv("STATE_DIRECTORY") != ""
}

func defaultConfig() string {
	if system() {
		return filepath.Join(configDir, "broker.yaml")
	}
	return filepath.Join(xdg("XDG_CONFIG_HOME", ".config"), "broker.yaml")
}

func xdg(variable, below string) string {
	if d := os.Getenv(variable); filepath.IsAbs(d) {
		return filepath.Join(d, program)
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/"
	}
	return filepath.Join(home, below, program)
}

// fill takes from the configuration, then from the defaults, what the command
// line did not say.
func (p *paths) fill(c *configs.Config) error {
	run := runDir
	p.fillState(c)
	if !system() {
		run = ""
		if d := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(d) {
			run = filepath.Join(d, program)
		}
	}
	p.consumer = cmp.Or(p.consumer, c.Sockets.Consumer)
	p.admin = cmp.Or(p.admin, c.Sockets.Admin)
	if run == "" && p.consumer == "" {
		return errors.New("there is no XDG_RUNTIME_DIR to put the socket into: give one with --socket")
	}
	p.consumer = cmp.Or(p.consumer, filepath.Join(run, "broker.sock"))
	p.admin = cmp.Or(p.admin, filepath.Join(filepath.Dir(p.consumer), "admin.sock"))
	return nil
}

func (p *paths) fillState(c *configs.Config) {
	state := stateDir
	if d := os.Getenv("STATE_DIRECTORY"); d != "" {
		state = d
	}
	if !system() {
		state = xdg("XDG_STATE_HOME", ".local/state")
	}
	p.state = cmp.Or(p.state, c.State, state)
}
