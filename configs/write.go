package configs

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// isLogin tells the keys of a section that say who logs in and how it gets
// there. All others say which secrets manager it is, and so does every key that
// an adapter may get one day.
func isLogin(key string) bool {
	return slices.Contains([]string{"auth", "sts_endpoint", "authority", "batch", // batch: how it reads
		"identity_file", "identity_command", "insecure_identity", "recipients_file"}, key)
}

// sameManager checks that w, the provider that p writes with, is the secrets
// manager that p reads.
func (k *checker) sameManager(name string, p, w Provider) {
	_, read := p.sections()
	_, written := w.sections()
	a, b := reflect.Indirect(reflect.ValueOf(read[0])), reflect.Indirect(reflect.ValueOf(written[0]))
	agent := byAgent(a) || byAgent(b)
	for i := range a.NumField() {
		key, options, _ := strings.Cut(a.Type().Field(i).Tag.Get("yaml"), ",")
		switch {
		case key == "" || strings.Contains(options, "inline") || isLogin(key): // inline: ca_file and proxy
		case agent && (key == "address" || key == "namespace"): // an Agent's own; it knows the manager
		case meaning(key, a.Field(i)) != meaning(key, b.Field(i)):
			section := join(join("providers", p.Write), p.Kind())
			k.always(join(section, key), fmt.Sprintf("the provider %s, whose login writes for %s, is another secrets manager: its %s is %s", quote(p.Write), quote(name), key, shown(b.Field(i))),
				shown(a.Field(i))+", as "+quote(name)+" has it", "both are logins to the same secrets manager")
		}
	}
}

// byAgent says whether a section's address is that of a Vault Agent.
func byAgent(section reflect.Value) bool {
	auth := section.FieldByName("Auth")
	if !auth.IsValid() {
		return false
	}
	agent := auth.FieldByName("Agent")
	return agent.IsValid() && agent.Bool()
}

// meaning is what a value stands for: zero is a default, and a slash at the end
// of a URL or path is nothing.
func meaning(key string, v reflect.Value) string {
	if key == "kv" && v.IsZero() {
		return "2"
	}
	return strings.TrimRight(fmt.Sprint(v.Interface()), "/")
}

func shown(v reflect.Value) string {
	if v.IsZero() {
		return "not set"
	}
	return quote(fmt.Sprint(v.Interface()))
}
