# Checks the sizes and names of C files, and prints the medians: at most 21 .c
# files, so many lines together, 120 columns, 60 lines and 5 parameters a
# function; each static function's name only once.
#
#   perl test/sizes.pl FILE...

use strict;
use warnings;

# The lines are nearly all there: who adds some takes others away.
my ($FILES, $LINES, $COLUMNS, $FUNCTION, $PARAMETERS) = (21, 8000, 120, 60, 5);
my ($files, $lines, $failed) = (0, 0, 0);
my (@lengths, %where);

sub complain { print "@_\n"; $failed = 1 }

sub width
{
    my $column = 0;
    $column += $_ eq "\t" ? 4 - $column % 4 : 1 for split //, $_[0];
    return $column;
}

for my $file (@ARGV)
{
    open my $in, '<', $file or die "$file: $!\n";
    my @text = map { s/\n$//r } <$in>;
    close $in;
    $files++ if $file =~ /\.c$/;
    $lines += @text;
    for my $number (0 .. $#text)
    {
        complain("$file:" . ($number + 1) . ": longer than $COLUMNS columns") if width($text[$number]) > $COLUMNS;
        next if $text[$number] ne '{';
        # The head: from the function's name in the first column to the line before the brace.
        my $first = $number - 1;
        $first-- while $first > 0 && $text[$first] =~ /^\s/;
        my ($name) = $text[$first] =~ /^(\w+)\(/ or next;
        my $end = $number;
        $end++ while $end < $#text && $text[$end] ne '}';
        my $parameters = join ' ', @text[$first .. $number - 1];
        $parameters =~ s/^\w+\((.*)\)[^)]*$/$1/;
        1 while $parameters =~ s/\([^()]*\)//g;
        # The lines between the braces, as a reader counts them.
        my $length = $end - $number - 1;
        push @lengths, $length;
        complain("$file:" . ($first + 1) . ": $name() has $length lines") if $length > $FUNCTION;
        my $count = () = $parameters =~ /,/g;
        complain("$file:" . ($first + 1) . ": $name() has " . ($count + 1) . ' parameters') if $count >= $PARAMETERS;
        push @{ $where{$name} }, $file if $text[ $first - 1 ] =~ /^static\b/;
    }
}
for my $name (sort keys %where)
{
    complain("static $name() is in @{ $where{$name} }") if @{ $where{$name} } > 1;
}
complain("$files .c files, more than $FILES") if $files > $FILES;
complain("$lines lines, more than $LINES") if $lines > $LINES;
@lengths = sort { $a <=> $b } @lengths;
printf "%d .c files, %d lines, %d functions, median %d lines, longest %d\n",
    $files, $lines, scalar @lengths, $lengths[ @lengths / 2 ] // 0, $lengths[-1] // 0;
exit $failed;
