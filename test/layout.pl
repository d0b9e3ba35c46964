# Lays C files out as pgindent does. clang-format does most of it; this adds
# the columns that it does not know: names of declarations stand twelve
# columns behind the indentation, trailing comments in column 33. Prints the
# names of the files whose layout differs; with --fix it also rewrites them.
#
#   perl test/layout.pl [--fix] FILE...

use strict;
use warnings;

my $TAB = 4;
my $TEXT = qr{"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|/\*.*?\*/}s;
my $TYPE = qr{(?:(?:static|extern|const|volatile|struct|enum|union|unsigned|signed|long|short)\ )*[A-Za-z_]\w*(?:\ const)?};

sub next_stop { my ($column) = @_; return $column + $TAB - $column % $TAB }

sub width
{
    my ($text) = @_;
    my $column = 0;
    $column = $_ eq "\t" ? next_stop($column) : $column + 1 for split //, $text;
    return $column;
}

# White space from one column to another; a single space is never written as a tab.
sub pad
{
    my ($from, $to) = @_;
    return ' ' if $to - $from <= 1;
    return ' ' x ($to - $from) if next_stop($from) - $from == 1 && next_stop($from) + $TAB > $to && $to % $TAB != 0;
    my $space = '';
    while (next_stop($from) <= $to)
    {
        $space .= "\t";
        $from = next_stop($from);
    }
    return $space . ' ' x ($to - $from);
}

sub indent { my ($columns) = @_; return "\t" x int($columns / $TAB) . ' ' x ($columns % $TAB) }

# One space between any two words, so that clang-format sees no columns.
sub collapse
{
    my ($source) = @_;
    $source =~ s{($TEXT)|(?<=\S)[ \t]+(?=\S)}{ defined $1 ? $1 : ' ' }ge;
    return $source;
}

# Puts the name of a declaration into its column.
sub place_name
{
    my ($line) = @_;
    return $line if $line =~ /^#/ || $line =~ /^\s*(?:return|goto|else|typedef|case|do|break|continue)\b/;
    my $declares = $line =~ /^(\t*)($TYPE) (\**)(\w+)((?:\[[^\]]*\])*(?:;| =|,).*|\(.*)$/
        || $line =~ /^(\t+)($TYPE) (\**)()(\(\*\w+\) \(.*;.*)$/;
    return $line if !$declares;
    my ($indent, $type, $stars, $name, $rest) = ($1, $2, $3, $4, $5);
    # A function's definition is no declaration, and neither is a call.
    return $line if $name ne '' && $rest =~ /^\(/ && !($indent eq '' && $type =~ /^(?:extern|static)\b/);
    my $column = width($indent) + length $type;
    my $space = pad($column, width($indent) + 12 - length $stars);
    return $indent . $type . $space . $stars . $name . $rest;
}

sub place_comment
{
    my ($line) = @_;
    return $line if $line =~ /^#(?!endif|else)/;
    my ($code, $comment) = $line =~ m{^(.*\S)\s+(/\*.*\*/)$} or return $line;
    return $line if $code =~ m{/\*};
    my $column = width($code);
    return $code . pad($column, $column < 32 ? 32 : next_stop($column)) . $comment;
}

# The columns behind the parentheses that a line leaves open, given those of the lines before.
sub open_parentheses
{
    my ($line, @open) = @_;
    (my $code = $line) =~ s{($TEXT)}{ '"' . ('x' x (length($1) - 2)) . '"' }ge;
    my $column = 0;
    for (split //, $code)
    {
        $column = $_ eq "\t" ? next_stop($column) : $column + 1;
        push @open, $column if $_ eq '(';
        pop @open if $_ eq ')';
    }
    return @open;
}

# A continued line stands behind the innermost open parenthesis, or four columns behind its statement.
sub align
{
    my ($source) = @_;
    my ($in_comment, $in_macro, $list, $depth, $start, $ended, @open) = (0, 0, 0, 0, 0, 1);
    my @lines;
    for my $line (split /\n/, $source, -1)
    {
        (my $code = $line) =~ s{$TEXT}{}g;
        if ($in_comment || $in_macro || $line =~ /^#/)
        {
            $in_comment = 0 if $line =~ m{\*/};
            $in_macro = $line =~ /\\$/ && !$in_comment;
            push @lines, place_comment($line);
            next;
        }
        $in_comment = $code =~ s{/\*.*$}{};
        if ($code =~ /\S/)
        {
            $code =~ s/\s+$//;
            # pgindent's spaces: before the arguments of a function pointer, and after a cast of a list in braces.
            $line =~ s/\((\*\w*)\)\(/($1) (/;
            $line =~ s/(\(\w+\))\{/$1 {/ if $code =~ /\{/;
            $line =~ s/\{ (?=\S)/{/g, $line =~ s/(?<=[^\s{]) \}/}/g if $code =~ /\S/;
            if (@open)
            {
                $line =~ s/^\s*/indent($open[-1])/e;
            }
            elsif (!$ended && !$list && $code !~ /^\s*[{}]/)
            {
                $line =~ s/^\s*/indent($start + $TAB)/e;
            }
            else
            {
                $line =~ /^(\s*)/;
                $start = width($1);
                $line = place_name($line);
            }
            $line = place_comment($line);
            @open = open_parentheses($line, @open);
            # Lists in braces keep the author's layout.
            if (!$list && $code =~ /= \{$|^(?:typedef |static )*enum\b[^;()]*$/)
            {
                ($list, $depth) = (1, $code =~ tr/}//);
            }
            $depth += ($code =~ tr/{//) - ($code =~ tr/}//);
            $list = 0 if $list && $depth <= 0 && $code =~ /\}/;
            $ended = !@open && ($code =~ /[;{}]$|^\s*(?:case\b.*|default|\w+):$|^\s*(?:else|do)$|^[^\s=][^=]*[\w*]$/
                    || $code =~ /\)$/ && is_head($start, \@lines, $line));
        }
        push @lines, $line;
    }
    return join "\n", @lines;
}

# Does the statement that ends with this line begin a block, as "if (...)" does?
sub is_head
{
    my ($start, $lines, $line) = @_;
    for my $earlier ($line, reverse @$lines)
    {
        next if $earlier =~ /^\s*$/ || $earlier !~ /^(\s*)/ || width($1) > $start;
        return $earlier =~ /^\s*(?:else )?(?:if|for|while|switch|\w*foreach\w*)\b|^\w/;
    }
    return 0;
}

# clang-format closes up the columns of #define; the author's stay.
sub keep_defines
{
    my ($formatted, $original) = @_;
    my %kept = $original =~ /^#define (\w+)([ \t]+)(?=\S)/mg;
    $formatted =~ s/^#define (\w+(?:\([^)\n]*\))?) (?=\S)/"#define $1" . ($kept{$1} \/\/ ' ')/mge;
    return $formatted;
}

my $fix = @ARGV && $ARGV[0] eq '--fix' && shift @ARGV;
my $differ = 0;
for my $file (@ARGV)
{
    local $/;
    open my $in, '<', $file or die "$file: $!\n";
    my $original = <$in>;
    my $temporary = "$file.layout";
    open my $out, '>', $temporary or die "$temporary: $!\n";
    print $out collapse($original);
    close $out or die "$temporary: $!\n";
    open my $formatter, '-|', 'sh', '-c', 'clang-format --style=file --assume-filename="$1" <"$2"', 'sh', $file, $temporary or die "clang-format: $!\n";
    my $formatted = <$formatter>;
    my $done = close $formatter;
    unlink $temporary;
    die "clang-format failed for $file\n" if !$done;
    $formatted = align(keep_defines($formatted, $original));
    next if $formatted eq $original;
    $differ = 1;
    my ($old, $new) = ([ split /\n/, $original ], [ split /\n/, $formatted ]);
    my $line = 0;
    $line++ while $line < @$old && $line < @$new && $old->[$line] eq $new->[$line];
    print "$file:", $line + 1, ": ", ($fix ? 'was' : 'is'), " not laid out as pgindent does\n";
    print "    is        ", $old->[$line] // '', "\n    should be ", $new->[$line] // '', "\n" if !$fix;
    next if !$fix;
    open $out, '>', $file or die "$file: $!\n";
    print $out $formatted;
    close $out or die "$file: $!\n";
}
exit($fix ? 0 : $differ);
