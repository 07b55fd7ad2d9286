package configs

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"credentialbroker/providers"

	"github.com/goccy/go-yaml/ast"
)

// Rules of this file:
//   - YAML becomes Go values by the yaml tags of the packages that own them;
//     only keys that are written change anything, so that decoding over a
//     preset overlays it: mappings are merged, lists replaced;
//   - every mistake is noted and decoding goes on;
//   - anchors, aliases, merge keys and tags are refused: who may have what
//     must be readable where it stands;
//   - own fields say more in a check tag: required, or one of some words
//     (check:"required", check:"a|b|c").

// A decoder turns the nodes of one file into values.
type decoder struct {
	*report
	file *source
	// credentials stands for ${CREDENTIALS_DIRECTORY}; empty: it is unknown.
	credentials string
	// offline: what is unknown stays as it is written.
	offline bool
}

// report is what the decoders of all files share.
type report struct {
	problems Problems
	places   map[string]place // by path: where its key is, or the value if it has none
	bad      map[string]bool  // paths at or below which there is a mistake
	refused  map[place]bool   // values refused as secrets: nothing more is said of them
	judged   map[string]bool  // their paths
	fields   map[reflect.Type][]field
	presets  map[string]*preset // those that were needed
	re       *patterns
}

func newReport() *report {
	return &report{places: map[string]place{}, bad: map[string]bool{}, refused: map[place]bool{}, judged: map[string]bool{}, fields: map[reflect.Type][]field{},
		presets: map[string]*preset{}, re: newPatterns()}
}

// problem notes a mistake at path.
func (r *report) problem(at place, path, message, expected, hint string) {
	r.problems = append(r.problems, r.re.problem(at, message, expected, hint))
	for path != "" {
		r.bad[path] = true
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
}

// at is where n stands.
func (d *decoder) at(n ast.Node) place {
	if m, ok := n.(*ast.MappingValueNode); ok {
		n = m.Key
	}
	if m, ok := n.(*ast.MappingNode); ok && !m.IsFlowStyle && len(m.Values) > 0 {
		n = m.Values[0].Key
	}
	t := n.GetToken()
	if t == nil || t.Position == nil {
		return place{d.file, 1, 1}
	}
	return place{d.file, max(1, t.Position.Line), max(1, t.Position.Column)}
}

// value decodes n into v.
func (d *decoder) value(n ast.Node, v reflect.Value, path string) {
	if t, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		d.word(n, t, path)
		return
	}
	if v.Type() == reflect.TypeFor[providers.Field]() && isScalar(n) {
		// fields: { client_id: clientId } is short for { key: clientId }.
		d.value(n, v.FieldByName("Key"), path)
		return
	}
	if n.Type() == ast.NullType {
		hint := ""
		if v.Kind() == reflect.Pointer && !slices.ContainsFunc(d.fieldsOf(v.Type().Elem()), func(f field) bool { return f.required }) {
			hint = "write {} if it is to have all its defaults"
		}
		d.problem(d.at(n), path, subject(path)+" has no value", expected(v.Type()), hint)
		return
	}
	if d.refused[d.at(n)] {
		d.judged[path] = true
	}
	switch v.Kind() {
	case reflect.Pointer:
		p := reflect.New(v.Type().Elem())
		if !v.IsNil() {
			p.Elem().Set(v.Elem())
		}
		d.value(n, p.Elem(), path)
		v.Set(p)
	case reflect.Struct:
		if pairs, ok := d.pairs(n, v.Type(), path); ok {
			d.structure(n, pairs, v, path)
		}
	case reflect.Map:
		if pairs, ok := d.pairs(n, v.Type(), path); ok {
			d.mapping(pairs, v, path)
		}
	case reflect.Slice:
		d.sequence(n, v, path)
	default:
		d.scalar(n, v, path)
	}
}

// pairs are the keys and values of a mapping, each key once.
func (d *decoder) pairs(n ast.Node, t reflect.Type, path string) ([]*ast.MappingValueNode, bool) {
	var all []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		all = n.Values
	case *ast.MappingValueNode:
		all = []*ast.MappingValueNode{n}
	default:
		d.wrongType(n, t, path)
		return nil, false
	}
	first := map[string]place{}
	pairs := make([]*ast.MappingValueNode, 0, len(all))
	for _, pair := range all {
		name := d.text(pair.Key)
		if before, twice := first[name]; twice {
			d.problem(d.at(pair), path, fmt.Sprintf("the key %s stands here a second time", quote(name)), "",
				fmt.Sprintf("the first is in line %d: keep one of them", before.line))
			continue
		}
		first[name] = d.at(pair)
		if d.plain(pair.Value, join(path, name)) {
			pairs = append(pairs, pair)
		}
	}
	return pairs, true
}

// plain refuses the parts of YAML that hide what is meant.
func (d *decoder) plain(n ast.Node, path string) bool {
	var what string
	switch n.(type) {
	case *ast.AnchorNode:
		what = "an anchor (&name)"
	case *ast.AliasNode:
		what = "an alias (*name)"
	case *ast.TagNode:
		what = "a tag (!name)"
	case *ast.MappingNode, *ast.MappingValueNode, *ast.SequenceNode, ast.ScalarNode:
		return true
	default:
		what = "this part of YAML"
	}
	d.problem(d.at(n), path, what+" is not taken in a configuration", "", "write the value out where it is used; quote text that begins with & * or !")
	return false
}

func (d *decoder) structure(n ast.Node, pairs []*ast.MappingValueNode, v reflect.Value, path string) {
	if c, ok := v.Addr().Interface().(*Client); ok {
		d.applyPreset(c, pairs, path)
	}
	if isLeftOut(v.Type()) {
		return
	}
	fields := d.fieldsOf(v.Type())
	for _, pair := range pairs {
		name := d.text(pair.Key)
		i := slices.IndexFunc(fields, func(f field) bool { return f.name == name })
		if i < 0 {
			d.unknownKey(pair, fields, path)
			continue
		}
		f := fields[i]
		if pair.Value.Type() == ast.NullType && f.required {
			d.problem(d.at(pair), join(path, name), subject(join(path, name))+" has no value", expected(f.typ), f.hint)
			continue
		}
		d.places[join(path, name)] = d.at(pair)
		d.value(pair.Value, v.FieldByIndex(f.index), join(path, name))
		d.oneOf(pair.Value, f, v.FieldByIndex(f.index), join(path, name))
	}
	for _, f := range fields {
		has := func(p *ast.MappingValueNode) bool { return d.text(p.Key) == f.name }
		if f.required && !slices.ContainsFunc(pairs, has) {
			at, ok := d.places[path]
			if !ok {
				at = d.at(n)
			}
			d.problem(at, path, fmt.Sprintf("%s lacks the key %s", subject(path), quote(f.name)), "", f.hint)
		}
	}
}

func (d *decoder) unknownKey(pair *ast.MappingValueNode, fields []field, path string) {
	if d.refused[d.at(pair.Value)] || d.refused[d.at(pair)] {
		return
	}
	if _, merge := pair.Key.(*ast.MergeKeyNode); merge {
		d.problem(d.at(pair), path, "a merge key (<<) is not taken in a configuration", "", "write the keys out where they are used")
		return
	}
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.name
	}
	name := d.text(pair.Key)
	slices.Sort(names)
	known, hint := list(names, "or"), didYouMean(name, names)
	if hint != "" && len(names) > 12 {
		known = "" // too many to read for one letter
	}
	d.problem(d.at(pair), path, fmt.Sprintf("%s has no key %s", subject(path), quote(name)), known, hint)
}

// mapping decodes into a new map, so that a preset's own is not changed.
func (d *decoder) mapping(pairs []*ast.MappingValueNode, v reflect.Value, path string) {
	m := reflect.MakeMap(v.Type())
	for _, k := range v.MapKeys() {
		m.SetMapIndex(k, v.MapIndex(k))
	}
	for _, pair := range pairs {
		name := d.text(pair.Key)
		key, elem := reflect.ValueOf(name).Convert(v.Type().Key()), reflect.New(v.Type().Elem()).Elem()
		sub := join(path, name)
		if first, twice := d.places[sub]; twice && (path == "clients" || path == "providers") {
			d.problem(d.at(pair), sub, fmt.Sprintf("%s is defined a second time", subject(sub)), "",
				fmt.Sprintf("the first is in %s:%d: keep one of them", first.file.name, first.line))
			continue
		}
		d.places[sub] = d.at(pair)
		d.value(pair.Value, elem, sub)
		m.SetMapIndex(key, elem)
	}
	v.Set(m)
}

func (d *decoder) sequence(n ast.Node, v reflect.Value, path string) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		d.wrongType(n, v.Type(), path)
		return
	}
	s := reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values))
	for i, item := range seq.Values {
		sub := path + "[" + strconv.Itoa(i) + "]"
		d.places[sub] = d.at(item)
		if d.plain(item, sub) {
			d.value(item, s.Index(i), sub)
		}
	}
	v.Set(s)
}

func (d *decoder) scalar(n ast.Node, v reflect.Value, path string) {
	if !isScalar(n) {
		d.wrongType(n, v.Type(), path)
		return
	}
	text := d.text(n)
	switch v.Kind() {
	case reflect.String:
		if n.Type() == ast.BoolType {
			d.wrongType(n, v.Type(), path)
			return
		}
		v.SetString(d.expand(n, text, path))
		return
	case reflect.Bool:
		if b, ok := n.(*ast.BoolNode); ok {
			v.SetBool(b.Value)
			return
		}
	case reflect.Int, reflect.Int32, reflect.Int64:
		if i, err := strconv.ParseInt(text, 10, v.Type().Bits()); err == nil && i >= 0 && n.Type() == ast.IntegerType {
			v.SetInt(i)
			return
		}
	case reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if i, err := strconv.ParseUint(text, 10, v.Type().Bits()); err == nil && n.Type() == ast.IntegerType {
			v.SetUint(i)
			return
		}
	default:
		panic("configs: no decoding for " + v.Type().String()) // TestSchema walks every type
	}
	d.wrongType(n, v.Type(), path)
}

func (d *decoder) word(n ast.Node, t encoding.TextUnmarshaler, path string) {
	typ := reflect.TypeOf(t).Elem()
	if !isScalar(n) || n.Type() == ast.NullType {
		d.wrongType(n, typ, path)
		return
	}
	text := d.text(n)
	if err := t.UnmarshalText([]byte(text)); err != nil && !d.refused[d.at(n)] {
		d.problem(d.at(n), path, path+" cannot be "+quote(text), expected(typ), "")
	}
}

// oneOf checks a field whose tag lists its words.
func (d *decoder) oneOf(n ast.Node, f field, v reflect.Value, path string) {
	if len(f.words) == 0 || d.bad[path] || d.refused[d.at(n)] || slices.Contains(f.words, v.String()) {
		return
	}
	d.problem(d.at(n), path, fmt.Sprintf("%s cannot be %s", lastKey(path), quote(v.String())), list(f.words, "or"), didYouMean(v.String(), f.words))
}

func (d *decoder) wrongType(n ast.Node, t reflect.Type, path string) {
	if d.refused[d.at(n)] {
		d.bad[path] = true
		return
	}
	is, hint := d.kindOf(n), ""
	switch {
	case n.Type() == ast.MappingType && t.Kind() == reflect.String:
		hint = `put text that begins with { in quotes, as in "{api_key}"`
	case n.Type() == ast.BoolType && t.Kind() == reflect.String:
		hint = "put the word in quotes if it is meant as text"
	case isScalar(n) && t.Kind() == reflect.Slice:
		hint = "put it in brackets: [" + quoteIfLong(d.text(n)) + "]"
	}
	d.problem(d.at(n), path, subject(path)+" is "+is, expected(t), hint)
}
