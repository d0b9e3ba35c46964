# Hibernate's merge(), update() and updates in JPQL lose nothing and send nothing twice. The entity and the statements
# are README's.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use ORM;
use PostgreSQL::Test::Utils;

my $sources = "$FindBin::RealBin/hibernate";
my $work = PostgreSQL::Test::Utils::tempdir();
my $classes = join ':', $work,
  map { "/usr/share/java/$_.jar" } qw(hibernate-core hibernate-entitymanager hibernate-commons-annotations geronimo-jpa_2.0_spec
  geronimo-jta-1.2-spec antlr commons-collections3 dom4j javassist slf4j-api slf4j-nop postgresql);

# Debian's Hibernate is from before JPA's move to jakarta.
sub readme_blocks
{
    my ($section) = PostgreSQL::Test::Utils::slurp_file("$FindBin::RealBin/../../README.md") =~ /^### Hibernate, JPA\n(.*?)^### /ms;
    return map { s/\bjakarta\.persistence\b/javax.persistence/gr } $section =~ /^```java\n(.*?)^```$/msg;
}

# The entity and its key, each in a file of its own, as javac wants public classes.
sub write_entity
{
    my ($imports, @types) = split /\n\n(?=\@|public class)/, $_[0];
    foreach my $type (@types)
    {
        my ($name) = $type =~ /^public class (\w+)/m or die "README's Java has no public class:\n$type";
        PostgreSQL::Test::Utils::append_to_file("$work/$name.java", "$imports\n$type\n");
    }
}

# The statements, each as a method.
sub write_example
{
    my ($cancel, $save, $failed) = grep { /^em\./ } split /^/, $_[0];
    PostgreSQL::Test::Utils::append_to_file("$work/Example.java", <<"END");
import java.util.*;
import javax.persistence.EntityManager;

class Example {
    static int cancel(EntityManager em, UUID id) { return $cancel }
    static Message save(EntityManager em, Message message) { return $save }
    static List<Message> failed(EntityManager em) { return $failed }
}
END
}

my ($entity, $example) = readme_blocks();
write_entity($entity);
write_example($example);
my @files = glob("$work/*.java $sources/*.java $sources/org/hibernate/annotations/*.java");
PostgreSQL::Test::Utils::system_or_bail('javac', '-nowarn', '-d', $work, '-cp', $classes, @files);
# Hibernate 3 makes its proxies as Java did before version 16.
ORM::run('Hibernate', 'java', '--add-opens', 'java.base/java.lang=ALL-UNNAMED', '-cp', $classes, 'App');
