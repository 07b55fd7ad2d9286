package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"credentialbroker/api/client"
	"credentialbroker/configs"
	"credentialbroker/internal/platform"
)

// tellPlatform writes what of this machine the daemon uses: one line, whose
// keys stay the same, and one for each thing that it cannot do therefore.
func tellPlatform(ctx context.Context, log *slog.Logger, list []platform.Feature) {
	var all []any
	for _, f := range list {
		all = append(all, f.Name, f.Used)
	}
	log.Info("platform", all...)
	for _, f := range list {
		level := slog.LevelWarn
		if f.Severe {
			level = slog.LevelError
		}
		if f.Lost != "" {
			log.Log(ctx, level, "this machine lacks something", "feature", f.Name, "effect", f.Lost)
		}
	}
}

// platformStatus is the same for administrators.
func platformStatus(list []platform.Feature) map[string]string {
	all := map[string]string{}
	for _, f := range list {
		all[f.Name] = f.Used
	}
	return all
}

// livePlatform tries everything anew.
func livePlatform(h platform.Host) (list []client.Finding) {
	all := h.Look()
	list = append(list, client.Finding{Check: "platform", Target: "host", Level: client.OK, Detail: platform.String(all)})
	for _, f := range all {
		level := client.Warning
		if f.Severe {
			level = client.Error
		}
		if f.Lost != "" {
			list = append(list, client.Finding{Check: "platform", Target: f.Name, Level: level, Detail: f.Lost})
		}
	}
	return list
}

// liveSELinux says what SELinux keeps from working; it says nothing where it
// does not enforce.
func (s *server) liveSELinux() (list []client.Finding) {
	s.mu.Lock()
	config := s.current.config
	s.mu.Unlock()
	program, err := os.Executable()
	if err != nil {
		program = "" // its label is not looked at
	}
	files := []string{s.paths.config, s.paths.state, s.paths.consumer, s.paths.admin, filepath.Join(filepath.Dir(s.paths.consumer), "credential.sock")}
	for _, c := range s.host.SELinux(program, files, servesWeb(config)) {
		list = append(list, client.Finding{Check: "selinux", Target: c.Target, Level: client.Error, Detail: c.Detail})
	}
	return list
}

// servesWeb says whether an allow entry means a program that SELinux counts
// among web servers.
func servesWeb(c *configs.Config) bool {
	for _, one := range c.Clients {
		for _, e := range one.Allow {
			switch e.User {
			case "apache", "nginx", "www-data", "php-fpm":
				return true
			}
			for _, name := range []string{"httpd", "apache2", "nginx", "lighttpd", "php"} {
				if strings.HasPrefix(e.Unit, name) {
					return true
				}
			}
		}
	}
	return false
}
